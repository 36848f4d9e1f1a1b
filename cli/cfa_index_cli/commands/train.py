"""`cfa-index train`: adapt the descriptor to the product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfa_index.specs import LARGEST_SEED, CardSpec
from cfa_index_cli import cards as c, engines as e, options as o

if TYPE_CHECKING:
    from cfa_index import Listener, TrainReport
    from cfa_index_cli.console import Session

_DEFAULTS = o.RECOMMENDED.train
_with_default = partial(o.with_default, owner="the model")


def train_command(
    category: o.CategoryName,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=0, help=_with_default("Passes over the images.", _DEFAULTS.epochs)),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help=_with_default("Of AdamW.", _DEFAULTS.learning_rate)),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option("--weight-decay", help=_with_default("Of AdamW.", _DEFAULTS.weight_decay)),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help=_with_default("Images a step.", _DEFAULTS.batch_size)),
    ] = None,
    attract: Annotated[
        int | None,
        typer.Option("--attract", help=_with_default("K: nearest memories that pull.", _DEFAULTS.attract)),
    ] = None,
    repel: Annotated[
        int | None,
        typer.Option("--repel", help=_with_default("J: the next ones, that push.", _DEFAULTS.repel)),
    ] = None,
    margin: Annotated[
        float | None, typer.Option("--margin", help=_with_default("alpha of L_rep.", _DEFAULTS.margin))
    ] = None,
    radius: Annotated[
        str | None,
        typer.Option(
            "--radius",
            help=_with_default("Start of the learned radius: a number, or 'median'.", _DEFAULTS.radius),
        ),
    ] = None,
    learn_radius: Annotated[
        bool | None,
        typer.Option(
            "--learn-radius/--fixed-radius",
            help=_with_default("Whether r moves with the loss.", _DEFAULTS.learn_radius),
        ),
    ] = None,
    select: Annotated[
        o.SelectName | None,
        typer.Option(
            "--select",
            help=_with_default(
                "synthetic: choose initialisation, bank and epoch by defects drawn on held-out "
                "good images. none: keep the start and the last epoch.",
                _DEFAULTS.select,
            ),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, max=LARGEST_SEED, help="Of the order of the images. [default: the model's]"
        ),
    ] = None,
    keep_epochs: Annotated[
        bool,
        typer.Option(
            "--keep-epochs",
            help="Keep the descriptor of every epoch in the model, for evaluate --protocol published.",
        ),
    ] = False,
    weights: o.BundleWeights = None,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    card_spread: c.CardSpread = None,
    threads: o.Threads = None,
    engine: e.CategoriesEngine = e.EngineName.LOCAL,
    gpus_per_actor: e.GpusPerActor = 0.0,
    ray_address: e.RayAddress = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Adapt the patch descriptor against the bank (the paper's Eqs. 1-3).

    Reads the features that build has kept: the backbone does not run, but for --select synthetic, which
    draws defects on held-out good images. Training always starts from the descriptor of the build
    (phi_0), or from the one that a selection has chosen, never from that of an earlier training; one
    that was stopped goes on from its last epoch when the same command is given again. The result is a
    new generation of the model; settings that are not given, --select too, are those of the current one.

    Example:

        cfa-index train --category cable --epochs 4

        cfa-index train --category all --engine ray
    """
    del config
    from cfa_index import (
        RayCluster,
        current_generation,
        list_models,
        read_manifest,
        reuse_freed_memory,
        set_threads,
    )
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.failures import each_category

    given: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "attract": attract,
        "repel": repel,
        "margin": margin,
        "radius": o.parse_radius(radius) if radius is not None else None,
        "learn_radius": learn_radius,
        "select": select.value if select else None,
    }
    reuse_freed_memory()
    if threads is not None:
        set_threads(threads)
    with session(events) as out:
        work = _Train(
            given=given,
            models_dir=models_dir,
            features_dir=features_dir,
            seed=seed,
            device=device,
            card=c.card_settings(card_memory, card_storage, card_spread),
            threads=threads,
            weights=weights,
            keep_epochs=keep_epochs,
        )

        def train_one(name: str) -> TrainReport:
            o.warn_random(read_manifest(current_generation(models_dir / name)).weights, out.say)
            report = work.told(name, out.listener)
            _show(out, name, report)
            return report

        def show(name: str, report: TrainReport) -> None:
            o.warn_random(report.manifest.weights, out.say)
            _show(out, name, report)

        names = list_models(models_dir) if category == "all" else [category]
        if engine is e.EngineName.RAY and len(names) > 1:
            cluster = RayCluster(
                address=ray_address, cpus_per_actor=threads or 1, gpus_per_actor=gpus_per_actor
            )
            reports, failed = e.each_category_on_ray(names, work, show, out, cluster)
        else:
            reports, failed = each_category(names, train_one, out.say)
    documents = [_document(report) for report in reports]
    write_document(json_file, o.one_or_many(documents, len(names)))
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class _Train:
    """Trains a category, in whichever process; `given` are the settings that were, the rest are options."""

    given: Mapping[str, Any]
    models_dir: Path
    features_dir: Path
    seed: int | None
    device: str
    card: CardSpec
    threads: int | None
    weights: Path | None
    keep_epochs: bool

    def __call__(self, name: str) -> TrainReport:
        """In a process of its own, on one thread unless told otherwise."""
        from cfa_index import ignore, reuse_freed_memory, set_threads

        reuse_freed_memory()
        set_threads(self.threads or 1)
        return self.told(name, ignore)

    def told(self, name: str, listener: Listener) -> TrainReport:
        """With someone who is told of progress."""
        from cfa_index import current_generation, read_manifest, train

        before = read_manifest(current_generation(self.models_dir / name))
        given = {setting: value for setting, value in self.given.items() if value is not None}
        return train(
            self.models_dir,
            name,
            replace(before.spec.train, **given),
            features_dir=self.features_dir,
            seed=self.seed,
            device=self.device,
            card=self.card,
            weights=self.weights,
            keep_epochs=self.keep_epochs,
            listener=listener,
        )


def _show(out: Session, name: str, report: TrainReport) -> None:
    from cfa_index_cli.console import percent

    threshold = report.manifest.threshold
    out.table(
        f"{name}: generation {report.manifest.generation}"
        + (f", threshold {threshold.value:.4g}" if threshold else ""),
        ["epoch", "L_att", "L_rep", "radius", "distance", "seconds"],
        [
            [
                str(row.epoch),
                f"{row.attraction:.4g}",
                f"{row.repulsion:.4g}",
                f"{row.radius:.4g}",
                f"{row.neighbor_distance:.4g}",
                f"{row.seconds:.1f}",
            ]
            for row in report.log
        ],
    )
    if report.trials:
        out.table(
            f"{name}: chosen by synthetic defects, epoch {report.epoch} of {len(report.log)}",
            ["", "tried", "synthetic AUROC", "gain, 95% interval", "kept"],
            [
                [
                    trial.axis,
                    trial.choice,
                    percent(trial.synthetic_auroc),
                    f"{100 * trial.gain:+.2f} ({100 * trial.gain_low:+.2f} .. {100 * trial.gain_high:+.2f})",
                    "yes" if trial.kept else "",
                ]
                for trial in report.trials
            ],
        )


def _document(report: TrainReport) -> dict[str, Any]:
    threshold = report.manifest.threshold
    return {
        "schema_version": 1,
        "category": report.manifest.category,
        "generation": report.manifest.generation,
        "path": str(report.path),
        "threshold": threshold.value if threshold else None,
        "epochs": [row.__dict__ for row in report.log],
        "epoch": report.epoch,
        "trials": [trial.__dict__ for trial in report.trials],
        "spec": report.manifest.spec.to_dict(),
    }
