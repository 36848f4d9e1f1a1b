"""`cfa-index study`: what each choice of bank and index costs, and what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfa_index.specs import INDEX_NAMES
from cfa_index_cli import cards as c, model_options as m, options as o

if TYPE_CHECKING:
    from cfa_index import StudySpec

_SWEEP = "Sweep"


def study_command(
    category: o.OneCategory,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the study; one that was stopped goes on. [default: studies/CATEGORY]",
            rich_help_panel=o.DATA,
        ),
    ] = None,
    data_root: o.DataRoot = o.DATA_ROOT,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Bank methods, such as hybrid,kmeans. [default: hybrid,kmeans,random,coreset]",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    bank_size: Annotated[
        str | None,
        typer.Option(
            "--bank-size", help="Memories in the bank. [default: 784,3136,12544]", rich_help_panel=_SWEEP
        ),
    ] = None,
    gamma_d: Annotated[
        str | None,
        typer.Option(
            "--gamma-d",
            help="Descriptor widths as shares of the features'. [default: 1,1/2,1/4]",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            help="Indexes by their short names, such as flat,ivf,hnsw. A FAISS factory string has commas of its "
            "own: set it apart by a semicolon. [default: flat,pca-refine,ivf,ivf-pq,hnsw]",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--every",
            help="Every combination. Otherwise sizes times indexes, and the other values one at a time.",
            rich_help_panel=_SWEEP,
        ),
    ] = False,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, help="Times each timing is taken.", rich_help_panel=_SWEEP)
    ] = 3,
    queries: Annotated[
        int,
        typer.Option("--queries", min=2, help="Patches that recall is measured on.", rich_help_panel=_SWEEP),
    ] = 4096,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the cells and how long they may take; write nothing."),
    ] = False,
    min_recall: o.MinRecall = None,
    backbone: m.BackboneName = None,
    weights: o.Weights = None,
    geometry: m.Geometry = None,
    size: m.SizePx = None,
    strides: m.Strides = None,
    tile: m.Tile = None,
    overlap: m.Overlap = None,
    held_out: m.HeldOut = None,
    seed: m.Seed = None,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Measure memory, latency and accuracy of many banks and indexes.

    Sweeps bank method, bank size, gamma_d and index over DATA_ROOT/CATEGORY. Measures for each cell bytes,
    build time, latency, throughput, recall against exact search and, on DATA_ROOT/CATEGORY/test where it
    is labelled, AUROC; marks the frontier, where nothing is better in memory, latency and accuracy at once.
    Latency is that of scoring from the backbone's features on; the backbone's own time stands beside it.

    Writes a table (study.parquet), plots, and study.html: one page that works without a network, where a click
    on a point copies the command that builds it. Cells that were measured before are not measured again, so
    a study may be stopped, and grow: name the old values and the new ones.

    Examples:

        cfa-index study --category cable --dry-run

        cfa-index study --category cable

        cfa-index study -c cable --bank-size 3136,50000 --index 'flat,ivf-pq;IVF256,PQ32x4fs'
    """
    del config
    from cfa_index import (
        open_category,
        plan_study,
        resolve_device,
        reuse_freed_memory,
        set_threads,
        study,
    )
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.studies import plan_document, report_document, show_plan, show_report

    sweep = _sweep(method, bank_size, gamma_d, index, every, repeat, queries)
    spec = o.override(
        o.RECOMMENDED,
        features={
            "backbone": backbone,
            "geometry": geometry.value if geometry else None,
            "size_px": size,
            "strides": o.parse_strides(strides) if strides is not None else None,
            **m.tile_settings(tile, overlap),
        },
        descriptor={},
        bank={"size": None, "gamma_c": None, "share": None},
        score={},
        index=o.index_settings(None, min_recall, None, None),
        top={"held_out": None if held_out is None else o.parse_ratio(held_out), "seed": seed},
    )
    given = {
        "--data-root": data_root if data_root != o.DATA_ROOT else None,
        "--features-dir": features_dir if features_dir != o.FEATURES_DIR else None,
        "--backbone": backbone,
        "--weights": weights,
        "--geometry": geometry.value if geometry else None,
        "--size": size,
        "--strides": strides,
        "--tile": tile,
        "--overlap": overlap,
        "--held-out": held_out,
        "--seed": seed,
        "--min-recall": min_recall,
    }
    words = ["cfa-index", "build", "--category", category]
    words += [word for name, value in given.items() if value is not None for word in (name, str(value))]
    reuse_freed_memory()
    if threads is not None:
        set_threads(threads)
    found = open_category(data_root, category)
    folder = output or Path("studies") / category
    card = c.card_settings(card_memory, card_storage)
    with session(events) as out:
        target = resolve_device(device)  # before weights are downloaded for nothing
        network = m.network_of(spec, weights)
        o.warn_random(network.origin, out.say)
        run: dict[str, Any] = {
            "backbone": network,
            "features_dir": features_dir,
            "device": target,
            "card": card,
            "threads": threads or 2,
            "listener": out.listener,
        }
        if dry_run:
            plan = plan_study(found, spec, sweep, folder, **run)
            show_plan(out, plan)
            write_document(json_file, plan_document(category, plan))
            return
        report = study(found, spec, sweep, folder, build_words=words, **run)
        show_report(out, report)
    write_document(json_file, report_document(report))
    if report.rejected:
        raise typer.Exit(3)


def _sweep(
    method: str | None,
    bank_size: str | None,
    gamma_d: str | None,
    index: str | None,
    every: bool,
    repeat: int,
    queries: int,
) -> StudySpec:
    """The axes from their lists; one that is not given keeps its default."""
    from cfa_index import StudySpec

    axes: dict[str, Any] = {
        "methods": None if method is None else method.split(","),
        "bank_sizes": None if bank_size is None else map(_whole_number, bank_size.split(",")),
        "gamma_ds": None if gamma_d is None else map(o.parse_ratio, gamma_d.split(",")),
        "indexes": None if index is None else [one for part in index.split(";") for one in _indexes(part)],
    }
    given = {name: tuple(values) for name, values in axes.items() if values is not None}
    return StudySpec(is_full=every, repeat=repeat, queries=queries, **given)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number of memories such as 3136") from error


def _indexes(text: str) -> list[str]:
    """`flat,ivf` is a list; with any word that is no short name it is one factory string."""
    names = text.split(",")
    is_list = all(name in INDEX_NAMES or name[:1].islower() for name in names)
    return names if is_list else [text]
