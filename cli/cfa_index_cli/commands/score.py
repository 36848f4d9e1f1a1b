"""`cfa-index score`: a folder of images to a table of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfa_index_cli import options as o


def score_command(
    folder: Annotated[Path, typer.Argument(help="Searched for images, its subfolders too.")],
    category: o.OneCategory,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Target folder: scores.csv, parts/*.parquet, heatmaps/.")
    ],
    models_dir: o.ModelsDir = o.MODELS_DIR,
    threshold: o.ThresholdValue = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Also write a PNG an image.")] = False,
    batch_size: o.BatchSize = 8,
    weights: o.BundleWeights = None,
    rebuild_index: o.RebuildIndex = False,
    device: o.Device = "auto",
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Score every image below a folder: a row an image, broken ones with their error.

    A run that was stopped goes on where it was when the same command is given again. Exit code 3
    says that some images could not be read.

    Example:

        cfa-index score night_shift/ --category cable -o scores --heatmaps
    """
    del config
    from cfa_index import ModelBundle, reuse_freed_memory, score_folder, set_threads
    from cfa_index_cli.console import session, write_document

    reuse_freed_memory()
    if threads is not None:
        set_threads(threads)
    with session(events) as out:
        bundle = ModelBundle.load(
            models_dir / category, device=device, weights=weights, rebuild_index=rebuild_index
        )
        o.warn_random(bundle.manifest.weights, out.say)
        report = score_folder(
            bundle,
            folder,
            output,
            threshold=threshold,
            heatmaps=heatmaps,
            batch_size=batch_size,
            threads=threads or 2,
            listener=out.listener,
        )
        resumed = f" ({report.resumed} from an earlier run)" if report.resumed else ""
        limit = f"above {report.threshold:.4g}" if report.threshold is not None else "no threshold"
        out.say(
            f"{report.images} images{resumed}: {report.anomalous} anomalous ({limit}), "
            f"{report.rejected} rejected\n{report.output / 'scores.csv'}"
        )
    write_document(json_file, report.to_dict())
    if report.rejected:
        raise typer.Exit(3)
