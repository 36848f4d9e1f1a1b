"""`cfa-index build`: good images to a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfa_index.specs import CardSpec, ModelSpec
from cfa_index_cli import cards as c, engines as e, model_options as m, options as o

if TYPE_CHECKING:
    from cfa_index import Backbone, BuildReport, GoodImages, Listener


_DEFAULTS = o.RECOMMENDED


def build_command(
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            "-c",
            help="Name of the product, or 'all' under the data root.",
            rich_help_panel=o.DATA,
        ),
    ] = None,
    normals: Annotated[
        Path | None,
        typer.Option(
            "--normals",
            help="A plain folder of good images, in place of the MVTec layout.",
            rich_help_panel=o.DATA,
        ),
    ] = None,
    data_root: o.DataRoot = o.DATA_ROOT,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    preset: Annotated[
        o.Preset,
        typer.Option("--preset", help="Where all settings start from.", rich_help_panel=o.FEATURES),
    ] = o.Preset.RECOMMENDED,
    backbone: m.BackboneName = None,
    weights: o.Weights = None,
    geometry: m.Geometry = None,
    size: m.SizePx = None,
    strides: m.Strides = None,
    tile: m.Tile = None,
    overlap: m.Overlap = None,
    init: Annotated[
        o.InitName | None,
        typer.Option(
            "--init",
            help=o.with_default("Where the descriptor starts.", _DEFAULTS.descriptor.init),
            rich_help_panel=o.FEATURES,
        ),
    ] = None,
    gamma_d: Annotated[
        str | None,
        typer.Option(
            "--gamma-d",
            help=o.with_default(
                "Descriptor width as a share of the features', such as 1/4.", _DEFAULTS.descriptor.gamma_d
            ),
            rich_help_panel=o.FEATURES,
        ),
    ] = None,
    method: Annotated[
        o.MethodName | None,
        typer.Option(
            "--method",
            help=o.with_default(
                "How patches become memories. hybrid: half centres of a sample, half patches that these cover "
                "worst. kmeans: centres alone. coreset: PatchCore's, patches that cover all others. random: drawn patches. full: every patch. ema, mean: averages by position, "
                "as in the paper and in its code.",
                _DEFAULTS.bank.method,
            ),
            rich_help_panel=o.BANK,
        ),
    ] = None,
    bank_size: Annotated[
        int | None,
        typer.Option(
            "--bank-size",
            help=o.with_default("Memories in the bank.", _DEFAULTS.bank.size),
            rich_help_panel=o.BANK,
        ),
    ] = None,
    gamma_c: Annotated[
        str | None,
        typer.Option(
            "--gamma-c",
            help="Memories as a share of an image's patches, in place of --bank-size.",
            rich_help_panel=o.BANK,
        ),
    ] = None,
    bank_share: Annotated[
        str | None,
        typer.Option(
            "--bank-share",
            help="Memories as a share of all good patches, such as 1/100, in place of --bank-size.",
            rich_help_panel=o.BANK,
        ),
    ] = None,
    index: o.IndexName = None,
    min_recall: o.MinRecall = None,
    budget_memory: o.BudgetMemory = None,
    budget_latency: o.BudgetLatency = None,
    patch_score: Annotated[
        o.PatchScoreName | None,
        typer.Option(
            "--patch-score",
            help=o.with_default(
                "nearest: the distance to the nearest memory (Eq. 4). certainty: Eq. 5, as in the paper.",
                _DEFAULTS.score.patch_score,
            ),
            rich_help_panel=o.SCORE,
        ),
    ] = None,
    baseline: Annotated[
        o.BaselineName | None,
        typer.Option(
            "--baseline",
            help=o.with_default(
                "position: judge a patch by what exceeds the usual score at its place. none: by its score.",
                _DEFAULTS.score.baseline,
            ),
            rich_help_panel=o.SCORE,
        ),
    ] = None,
    neighbors: Annotated[
        int | None,
        typer.Option(
            "--neighbors",
            help=o.with_default("How many matches a query shows, and K of Eq. 5.", _DEFAULTS.score.neighbors),
            rich_help_panel=o.SCORE,
        ),
    ] = None,
    held_out: m.HeldOut = None,
    false_alarm_rate: Annotated[
        str | None,
        typer.Option(
            "--false-alarm-rate",
            help=o.with_default(
                "Share of good images that may score above the threshold.", _DEFAULTS.score.false_alarm_rate
            ),
            rich_help_panel=o.SCORE,
        ),
    ] = None,
    seed: m.Seed = None,
    embed_weights: Annotated[
        bool,
        typer.Option(
            "--embed-weights/--no-embed-weights",
            help="Put the backbone into the model.",
            rich_help_panel=o.FEATURES,
        ),
    ] = True,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    threads: o.Threads = None,
    engine: e.CategoriesEngine = e.EngineName.LOCAL,
    gpus_per_actor: e.GpusPerActor = 0.0,
    ray_address: e.RayAddress = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Learn what is normal from good images: features, bank, index, threshold.

    Reads DATA_ROOT/CATEGORY/train/good (or --normals DIR) and writes MODELS_DIR/CATEGORY. Features
    are kept in FEATURES_DIR, so that a second build, or one that was stopped, only computes what is
    missing.

    Examples:

        cfa-index build --category cable

        cfa-index build --normals good_parts/ --category bracket --backbone resnet18

        cfa-index build -c cable --preset paper --gamma-d 1/4 --gamma-c 1/4

        cfa-index build -c cable --method coreset --bank-share 1/100

        cfa-index build -c panel --tile 224 --overlap 32

        cfa-index build -c all --engine ray --threads 4

        cfa-index build -c cable --method full --budget-memory 64MiB --budget-latency 20ms
    """
    del config  # its callback has done the work
    if category is None and normals is None:
        raise typer.BadParameter("give --category NAME (or 'all'), or --normals DIR")
    if category == "all" and normals is not None:
        raise typer.BadParameter("give --normals DIR the name of one category, not 'all'")
    sizes = {"--bank-size": bank_size, "--gamma-c": gamma_c, "--bank-share": bank_share}
    sized_by = [name for name, value in sizes.items() if value is not None]
    if len(sized_by) > 1:
        raise typer.BadParameter(f"give {' or '.join(sized_by)}, not both")
    if method is o.MethodName.FULL and sized_by:
        raise typer.BadParameter(f"--method full keeps every patch: leave out {sized_by[0]}")
    from cfa_index import RayCluster, backbone_entry, preset as named, resolve_device, set_threads
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.failures import each_category
    from cfa_index_cli.indexes import show_trials

    base = named(preset.value)
    start = init.value if init else base.descriptor.init
    # The paper widens phi with EfficientNet-B5; only random initialisations can.
    widens = preset is not o.Preset.RECOMMENDED and start in ("he", "torch")
    expansion = backbone_entry(backbone or base.features.backbone).expansion if widens else None
    spec = o.override(
        base,
        features={
            "backbone": backbone,
            "geometry": geometry.value if geometry else None,
            "size_px": size,
            "strides": o.parse_strides(strides) if strides is not None else None,
            **m.tile_settings(tile, overlap),
        },
        descriptor={
            "init": init.value if init else None,
            "gamma_d": _ratio(gamma_d),
            "expansion": expansion,
        },
        bank={
            "method": method.value if method else None,
            "size": bank_size,
            "gamma_c": _ratio(gamma_c),
            "share": _ratio(bank_share),
        },
        score={
            "patch_score": patch_score.value if patch_score else None,
            "baseline": baseline.value if baseline else None,
            "neighbors": neighbors,
            "false_alarm_rate": _ratio(false_alarm_rate),
        },
        index=o.index_settings(index, min_recall, budget_memory, budget_latency),
        top={"held_out": _ratio(held_out), "seed": seed},
    )
    if threads is not None:
        set_threads(threads)
    names = _names(category, normals, data_root)
    card = c.card_settings(card_memory, card_storage)
    is_elsewhere = engine is e.EngineName.RAY and len(names) > 1
    with session(events) as out:
        if not is_elsewhere:
            resolve_device(device)  # before weights are downloaded for nothing
        network = m.network_of(spec, weights)
        o.warn_random(network.origin, out.say)

        work = _Build(
            spec=spec,
            weights=weights,
            normals=normals,
            data_root=data_root,
            models_dir=models_dir,
            features_dir=features_dir,
            device=device,
            card=card,
            threads=threads,
            embed_weights=embed_weights,
        )

        def show(name: str, report: BuildReport) -> None:
            if len(report.trials) > 1:
                show_trials(out, name, report.trials)
            out.say(_summary(report))

        def build_one(name: str) -> BuildReport:
            report = work.with_network(name, network, out.listener)
            show(name, report)
            return report

        if is_elsewhere:
            cluster = RayCluster(
                address=ray_address, cpus_per_actor=threads or 1, gpus_per_actor=gpus_per_actor
            )
            reports, failed = e.each_category_on_ray(names, work, show, out, cluster)
        else:
            reports, failed = each_category(names, build_one, out.say)
    write_document(json_file, o.one_or_many([_document(report) for report in reports], len(names)))
    if failed:
        raise typer.Exit(1)
    if any(report.rejected for report in reports):
        raise typer.Exit(3)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """Builds a category, in whichever process; the fields are the command's options."""

    spec: ModelSpec
    weights: str | None
    normals: Path | None
    data_root: Path
    models_dir: Path
    features_dir: Path
    device: str
    card: CardSpec
    threads: int | None
    embed_weights: bool

    def __call__(self, name: str) -> BuildReport:
        """In a process of its own, on one thread unless told otherwise."""
        from cfa_index import ignore, set_threads

        set_threads(self.threads or 1)
        return self.with_network(name, m.network_of(self.spec, self.weights), ignore)

    def with_network(self, name: str, network: Backbone, listener: Listener) -> BuildReport:
        """With a backbone that is loaded already."""
        from cfa_index import build, resolve_device

        return build(
            _good_images(name, self.normals, self.data_root),
            self.spec,
            backbone=network,
            models_dir=self.models_dir,
            features_dir=self.features_dir,
            device=resolve_device(self.device),
            card=self.card,
            threads=self.threads or 2,
            embed_weights=self.embed_weights,
            listener=listener,
        )


def _ratio(text: str | None) -> float | None:
    return None if text is None else o.parse_ratio(text)


def _names(category: str | None, normals: Path | None, data_root: Path) -> list[str]:
    """Of the categories to build; that of a plain folder is its own name unless one is given."""
    from cfa_index import list_categories
    from cfa_index.errors import DatasetError

    if category is None:
        assert normals is not None
        return [normals.resolve().name]
    if category != "all":
        return [category]
    names = list_categories(data_root)
    if not names:
        raise DatasetError(
            expected=f"categories with train/good below {data_root}", got="none", remedy="check --data-root"
        )
    return names


def _good_images(name: str, normals: Path | None, data_root: Path) -> GoodImages:
    from cfa_index import GoodImages, open_category, plain_folder

    if normals is not None:
        return GoodImages(category=name, source=normals, images=plain_folder(normals))
    found = open_category(data_root, name)
    return GoodImages(category=found.name, source=found.folder, images=found.train_good())


def _summary(report: BuildReport) -> str:
    manifest = report.manifest
    threshold = manifest.threshold
    limit = (
        f"threshold {threshold.value:.4g} for a false-alarm rate of {threshold.supported_rate:.3g}"
        f" ({threshold.count} held-out images)"
        if threshold
        else "no threshold (no images held out)"
    )
    state = manifest.index
    found = f" under {state.describe()}, recall@1 {state.recall_at_1:.4f}" if state else ""
    rejected = f", {report.rejected} rejected" if report.rejected else ""
    return (
        f"{manifest.category}: generation {manifest.generation}, {report.images} images{rejected}, "
        f"bank of {report.memories} x {report.width}{found}, {limit}\n{report.path}"
    )


def _document(report: BuildReport) -> dict[str, object]:
    return {
        "schema_version": 1,
        "category": report.manifest.category,
        "generation": report.manifest.generation,
        "path": str(report.path),
        "store": str(report.store),
        "images": report.images,
        "images_rejected": report.rejected,
        "memories": report.memories,
        "width": report.width,
        "threshold": report.manifest.threshold.value if report.manifest.threshold else None,
        "index": report.manifest.index.to_dict() if report.manifest.index else None,
        "index_trials": [trial.to_dict() for trial in report.trials],
        "weights": report.manifest.weights.source,
        "spec": report.manifest.spec.to_dict(),
    }
