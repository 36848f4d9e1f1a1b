"""`cfa-index score`: a folder of images to a table of scores."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from cfa_index_cli import cards as c, engines as e, options as o

READING, GOING_ON = "Reading", "Going on"
_WORKERS_AT_MOST = 8


def score_command(
    folder: Annotated[
        str, typer.Argument(help="Searched for images, its subfolders too; or s3://BUCKET/PREFIX (extra s3).")
    ],
    category: o.OneCategory,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Target, a folder or s3://BUCKET/PREFIX: report.html, scores.csv, parts/*.parquet.",
        ),
    ],
    models_dir: o.ModelsDir = o.MODELS_DIR,
    threshold: o.ThresholdValue = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Also write a PNG an image.")] = False,
    maps: Annotated[
        bool,
        typer.Option("--maps", help="Also keep the anomaly maps: maps/, a Zarr array (images, side, side)."),
    ] = False,
    gallery: Annotated[
        int, typer.Option("--gallery", min=0, help="Images of the highest scores that report.html shows.")
    ] = 60,
    report_page: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html at the end.")
    ] = True,
    batch_size: o.BatchSize = 8,
    shard_images: Annotated[
        int,
        typer.Option("--shard-images", min=1, help="Images a part; what a killed run loses, at most."),
    ] = 256,
    rescan: Annotated[
        bool,
        typer.Option(
            "--rescan",
            help="Walk the folder again: new images are added, those whose size or time has changed are scored "
            "again, rows of images that are gone stay.",
            rich_help_panel=GOING_ON,
        ),
    ] = False,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors",
            help="Score those again that had an error, and only those.",
            rich_help_panel=GOING_ON,
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="Processes that read images and draw; 0 reads in threads, without a time limit. "
            f"[default: one a core, at most {_WORKERS_AT_MOST}]",
            rich_help_panel=READING,
        ),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(
            "--time-limit",
            min=0.1,
            help="Seconds for one file; a longer one is a row with an error.",
            rich_help_panel=READING,
        ),
    ] = 60.0,
    max_pixels: Annotated[
        int,
        typer.Option(
            "--max-pixels",
            min=1,
            help="Larger images are refused before they are decoded.",
            rich_help_panel=READING,
        ),
    ] = 64_000_000,
    precision: Annotated[
        o.PrecisionName,
        typer.Option(
            "--precision",
            help="bf16 computes backbone, descriptor and candidates in bfloat16, where the CPU or card multiplies "
            "it: faster, scores move by about 1%. Distances stay exact float32.",
            rich_help_panel=o.RUN,
        ),
    ] = o.PrecisionName.FP32,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the backbone first: 10 to 20 s, and a C++ compiler; pays from some thousand images on.",
            rich_help_panel=o.RUN,
        ),
    ] = False,
    decode: Annotated[
        o.DecodeName,
        typer.Option(
            "--decode",
            help="card decodes JPEGs there, with nvJPEG: for files that keep the cores busy. Scores move, at "
            "colour edges by some percent (docs/precision.md); not with tiles or Ray. Has not run on hardware.",
            rich_help_panel=READING,
        ),
    ] = o.DecodeName.HOST,
    engine: e.ScoreEngine = e.EngineName.LOCAL,
    actors: e.Actors = 1,
    gpus_per_actor: e.GpusPerActor = 0.0,
    ray_address: e.RayAddress = None,
    weights: o.BundleWeights = None,
    rebuild_index: o.RebuildIndex = False,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    card_spread: c.CardSpread = None,
    threads: o.Threads = None,
    log_level: o.LogLevel = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Score every image below a folder: a row an image, broken ones with their error.

    The folder may hold millions: scoring starts at once, and memory does not grow with them. A run that was
    stopped, in whatever way, goes on where it was when the same command is given again; Ctrl-C and SIGTERM
    finish the shard first. Exit codes: 3 some images could not be read, 130 and 143 stopped by a signal.

    Example:

        cfa-index score night_shift/ --category cable -o scores --heatmaps

        cfa-index score s3://line-3/night -c cable -o s3://line-3/scores --engine ray --actors 4
    """
    del config
    from cfa_index import (
        ModelBundle,
        RayCluster,
        reuse_freed_memory,
        score_folder,
        score_folder_on_ray,
        set_threads,
        usable_cores,
    )
    from cfa_index.errors import SpecError
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.stopping import stopping

    card = c.card_settings(card_memory, card_storage, card_spread)
    reuse_freed_memory()
    if threads is not None:
        set_threads(threads)
    with session(events, log_level) as out:
        bundle = ModelBundle.load(
            models_dir / category,
            device=device,
            card=card,
            weights=weights,
            rebuild_index=rebuild_index,
            precision=precision.value,
            compiled=compiled,
        )
        o.warn_random(bundle.manifest.weights, out.say)
        with stopping() as stop:
            score = partial(
                score_folder,
                workers=min(usable_cores(), _WORKERS_AT_MOST) if workers is None else workers,
                time_limit_s=time_limit,
                decode=decode.value,
            )
            if engine is e.EngineName.RAY and decode is o.DecodeName.CARD:
                raise SpecError(
                    expected="--decode host with --engine ray",
                    got="card",
                    remedy="leave one of them out: Ray's tasks decode the images",
                )
            if engine is e.EngineName.RAY:
                score = partial(
                    score_folder_on_ray,
                    cluster=RayCluster(
                        address=ray_address,
                        actors=actors,
                        cpus_per_actor=threads or 1,
                        gpus_per_actor=gpus_per_actor,
                    ),
                    device=device,
                    card=card,
                    weights=weights,
                    rebuild_index=rebuild_index,
                    compiled=compiled,
                )
            try:
                report = score(
                    bundle,
                    folder,
                    output,
                    threshold=threshold,
                    heatmaps=heatmaps,
                    maps=maps,
                    batch_size=batch_size,
                    shard_images=shard_images,
                    max_pixels=max_pixels,
                    rescan=rescan,
                    retry_errors=retry_errors,
                    gallery=gallery if report_page else None,
                    stop=stop,
                    listener=out.listener,
                )
            except KeyboardInterrupt:
                out.say("stopped at once; the same command goes on behind the last shard")
                raise typer.Exit(stop.exit_code) from None
        resumed = f" ({report.resumed} from an earlier run)" if report.resumed else ""
        shown = "report.html" if report_page else "scores.csv"
        limit = f"above {report.threshold:.4g}" if report.threshold is not None else "no threshold"
        out.say(
            f"{report.images} images{resumed}: {report.anomalous} anomalous ({limit}), "
            f"{report.rejected} rejected\n"
            + ("stopped; the same command goes on" if report.stopped else f"{report.output}/{shown}")
        )
    write_document(json_file, report.to_dict())
    if report.stopped:
        raise typer.Exit(stop.exit_code)
    if report.rejected:
        raise typer.Exit(3)
