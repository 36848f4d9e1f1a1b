"""`cfa-index bank`: look at a bank, check it, and change it while others read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfa_index_cli import cards as c, options as o

if TYPE_CHECKING:
    from cfa_index import LivingReport, Manifest
    from cfa_index_cli.console import Session

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at a bank, check it, change it. Each change is a new generation: readers are not disturbed, and "
    "`rollback` undoes it.",
)

Generation = Annotated[
    str | None, typer.Option("--generation", help="Name such as 0002. [default: the one in use]")
]
_SHOWN_IMAGES = 5


@app.command("info")
def info_command(
    category: o.OneCategory,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    generation: Generation = None,
    images: Annotated[
        bool,
        typer.Option("--images", help="List every image: its number of memories, or that it is held out."),
    ] = False,
    json_file: o.Json = None,
) -> None:
    """Size, bytes by part, method, index and recall, source images, and how the model came to be.

    Example:

        cfa-index bank info --category cable
    """
    from cfa_index import take_inventory
    from cfa_index_cli.console import session, write_document

    found = take_inventory(models_dir, category, generation, features_dir=features_dir)
    manifest, state = found.manifest, found.manifest.index
    with session(None) as out:
        threshold = manifest.threshold
        document = found.to_dict()
        came, went = document["additions"], len(document["images_removed"])
        changed = f", {came} additions, {went} removed" if came or went else ""
        out.table(
            f"{category}, generation {manifest.generation}",
            ["", ""],
            [
                ["bank", f"{found.memories} x {found.width}, {manifest.spec.bank.method}"],
                ["index", f"{state.describe()}" if state else "flat, exact"],
                ["recall@1", f"{state.recall_at_1:.4f} of {state.queries} good patches" if state else "1"],
                ["good images", f"{manifest.images}, {len(manifest.held_out.uris)} held out{changed}"],
                [
                    "threshold",
                    f"{threshold.value:.4g}, false-alarm rate {threshold.supported_rate:.3g}"
                    if threshold
                    else "none",
                ],
                ["backbone", f"{manifest.spec.features.backbone}, {manifest.weights.source} weights"],
            ],
        )
        total = sum(found.file_bytes.values())
        out.table(
            "on disk",
            ["file", "MiB"],
            [[name, _mib(size)] for name, size in [*found.file_bytes.items(), ("all", total)]],
        )
        shown = found.images if images else found.images[:_SHOWN_IMAGES]
        more = len(found.images) - len(shown)
        out.table(
            "memories by image",
            ["image", "memories"],
            [[one.uri, "held out" if one.held_out else str(one.memories)] for one in shown]
            + [[f"and {more} more (--images)", ""]] * bool(more),
        )
        out.table(
            "generations",
            ["", "made by", "from", "when", "index"],
            [
                [
                    f"{one.generation}{' (in use)' if one.generation == found.current else ''}",
                    one.action,
                    one.parent or "-",
                    one.created,
                    one.index,
                ]
                for one in found.lineage
            ],
        )
    write_document(json_file, document)


@app.command("add")
def add_command(
    images: Annotated[
        list[Path], typer.Argument(help="New good images, or folders of them.", show_default=False)
    ],
    category: o.OneCategory,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    weights: o.BundleWeights = None,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Add good images: their features are made once, and patches that the bank covers worst become memories.

    As many as keep the bank's density; all patches in a `full` bank. The model's share of them is held out,
    and threshold and baseline are fitted again. Averages (`ema`, `mean`, k-means centres) stay as they are:
    new memories stand beside them.

    Example:

        cfa-index bank add new_lot/ --category cable
    """
    del config
    from cfa_index import add_images, set_threads
    from cfa_index_cli.console import session, write_document

    if threads is not None:
        set_threads(threads)
    with session(events) as out:
        report = add_images(
            models_dir,
            category,
            images,
            features_dir=features_dir,
            device=device,
            card=c.card_settings(card_memory, card_storage),
            weights=weights,
            threads=threads or 2,
            listener=out.listener,
        )
        _say(out, report, f"added {len(report.images)} images")
    write_document(json_file, _document(report))
    if report.rejected:
        raise typer.Exit(3)


@app.command("remove")
def remove_command(
    category: o.OneCategory,
    image: Annotated[
        list[str],
        typer.Option(
            "--image",
            help="A bad image that slipped in, by name, uri or path; may be repeated.",
            show_default=False,
        ),
    ],
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Fit everything again from the stored features of the other images: the way for banks whose "
            "memories are means (hybrid, kmeans, ema, mean).",
        ),
    ] = False,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    weights: o.BundleWeights = None,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Take images out of a model: their memories, and their part in baseline and threshold.

    What `bank add` brought leaves without a trace: scores are those of before. An image of the build leaves a
    bank of patches (full, random, coreset) so; other banks need --rebuild.

    Example:

        cfa-index bank remove --image 017.png --category cable
    """
    del config
    from cfa_index import remove_images, set_threads
    from cfa_index_cli.console import session, write_document

    if threads is not None:
        set_threads(threads)
    with session(events) as out:
        report = remove_images(
            models_dir,
            category,
            image,
            features_dir=features_dir,
            rebuild=rebuild,
            device=device,
            card=c.card_settings(card_memory, card_storage),
            weights=weights,
            listener=out.listener,
        )
        _say(out, report, f"removed {len(report.images)} images")
        if rebuild:
            out.say("phi is that of a new build: run train again if the model was trained")
    write_document(json_file, _document(report))


@app.command("reindex")
def reindex_command(
    category: o.OneCategory,
    index: o.IndexName = None,
    min_recall: o.MinRecall = None,
    budget_memory: o.BudgetMemory = None,
    budget_latency: o.BudgetLatency = None,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    weights: o.BundleWeights = None,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Put another index over the same memories, tuned on held-out patches.

    Examples:

        cfa-index bank reindex --category cable --index ivf-pq --min-recall 0.999

        cfa-index bank reindex --category cable --budget-memory 64MiB --budget-latency 20ms
    """
    del config
    settings = o.index_settings(index, min_recall, budget_memory, budget_latency)
    if "factory" not in settings:
        raise typer.BadParameter("give --index NAME, or a budget")
    from cfa_index import reindex, set_threads
    from cfa_index.specs import IndexSpec
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.indexes import show_trials

    if threads is not None:
        set_threads(threads)
    with session(events) as out:
        report = reindex(
            models_dir,
            category,
            IndexSpec(**settings),
            features_dir=features_dir,
            device=device,
            card=c.card_settings(card_memory, card_storage),
            weights=weights,
            listener=out.listener,
        )
        if len(report.trials) > 1:
            show_trials(out, category, report.trials)
        _say(out, report, "index changed")
    write_document(json_file, _document(report))


@app.command("verify")
def verify_command(
    category: o.OneCategory,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    generation: Annotated[
        str | None, typer.Option("--generation", help="Name such as 0002. [default: all of them]")
    ] = None,
    json_file: o.Json = None,
    events: o.Events = None,
) -> None:
    """Compare every file with its checksum, the index with the vectors, the sources with the memories.

    Where build's features are still there, the recall of the index is measured again, too. Exit code 1 and a line for each damage; nothing is changed.

    Example:

        cfa-index bank verify --category cable
    """
    from cfa_index import verify
    from cfa_index_cli.console import session, write_document

    with session(events) as out:
        findings = verify(
            models_dir, category, generation=generation, features_dir=features_dir, listener=out.listener
        )
        for finding in findings:
            place = f"generation {finding.generation}" if finding.generation else "pointer"
            out.say(f"{category}, {place}: {finding.message}")
        if not findings:
            out.say(f"{category}: all as it was written")
    document = [{"generation": one.generation, "message": one.message} for one in findings]
    write_document(json_file, {"schema_version": 1, "category": category, "findings": document})
    if findings:
        raise typer.Exit(1)


@app.command("rollback")
def rollback_command(
    category: o.OneCategory,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Name such as 0002. [default: what the one in use was made from]"),
    ] = None,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    json_file: o.Json = None,
) -> None:
    """Go back to an earlier generation; only the pointer moves, so you can go forward again with --to.

    Example:

        cfa-index bank rollback --category cable
    """
    from cfa_index import rollback
    from cfa_index_cli.console import session, write_document

    report = rollback(models_dir, category, to)
    manifest, before = report.manifest, report.before
    with session(None) as out:
        was = f"{_summary(before)} -> " if before else ""
        out.say(f"{category}: {was}{_summary(manifest)}")
    write_document(
        json_file,
        {
            "schema_version": 1,
            "category": category,
            "from": before.generation if before else None,
            "generation": manifest.generation,
            "images_before": before.images if before else None,
            "images": manifest.images,
            "threshold_before": before.threshold.value if before and before.threshold else None,
            "threshold": manifest.threshold.value if manifest.threshold else None,
        },
    )


def _summary(manifest: Manifest) -> str:
    limit = f"threshold {manifest.threshold.value:.4g}" if manifest.threshold else "no threshold"
    index = manifest.index.describe() if manifest.index else "flat"
    return f"generation {manifest.generation} ({manifest.action}, {manifest.images} images, {index}, {limit})"


def _say(out: Session, report: LivingReport, what: str) -> None:
    manifest = report.manifest
    old = "none" if report.threshold_before is None else f"{report.threshold_before:.4g}"
    new = "none" if manifest.threshold is None else f"{manifest.threshold.value:.4g}"
    state = manifest.index
    found = f", {state.describe()}, recall@1 {state.recall_at_1:.4f}" if state else ""
    out.say(
        f"{manifest.category}: {what}; generation {manifest.generation}, memories {report.memories_before} -> "
        f"{report.memories}{found}, threshold {old} -> {new}\n{report.path}"
    )


def _document(report: LivingReport) -> dict[str, Any]:
    manifest = report.manifest
    return {
        "schema_version": 1,
        "category": manifest.category,
        "generation": manifest.generation,
        "path": str(report.path),
        "action": manifest.action,
        "images": list(report.images),
        "images_rejected": report.rejected,
        "memories_before": report.memories_before,
        "memories": report.memories,
        "threshold_before": report.threshold_before,
        "threshold": manifest.threshold.value if manifest.threshold else None,
        "index": manifest.index.to_dict() if manifest.index else None,
        "index_trials": [trial.to_dict() for trial in report.trials],
    }


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f}"
