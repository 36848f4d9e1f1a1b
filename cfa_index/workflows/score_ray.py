"""Score a folder on many machines: the shards of the list on Ray, with the rows that one machine gives.

    list (here) --> fetch and decode a shard (tasks) --> score_images (actors) --> maps, heatmaps, rows (tasks)

The pieces of work are the shards, so that batches and parts are those of `score_folder`, and either goes on with
what the other has left. The walk ends before Ray begins.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cfa_index.bundle import ModelBundle
from cfa_index.engines import Payload, RayCluster, run_on_ray
from cfa_index.errors import BundleError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.images import MAX_PIXELS, Frame, Views
from cfa_index.places import LocalPlace
from cfa_index.workflows.score import ScoreReport
from cfa_index.workflows.score_listing import Listing, Shard, uri_of
from cfa_index.workflows.score_pipeline import read_entry
from cfa_index.workflows.score_rows import score_images
from cfa_index.workflows.score_run import ScoreRun, open_run
from cfa_index.workflows.score_target import CHECKPOINT, LOCK_FILE, claim

_LOOKING = 16
"""Threads that look for what is done: each waits for a disk or a server most of the time."""


def score_folder_on_ray(
    bundle: ModelBundle,
    folder: Path | str,
    output: Path | str,
    *,
    cluster: RayCluster,
    device: str = "cpu",
    weights: Path | None = None,
    rebuild_index: bool = False,
    threshold: float | None = None,
    heatmaps: bool = False,
    maps: bool = False,
    batch_size: int = 8,
    shard_images: int = 256,
    max_pixels: int = MAX_PIXELS,
    rescan: bool = False,
    retry_errors: bool = False,
    credit: str = "",
    stop: Callable[[], bool] = lambda: False,
    listener: Listener = ignore,
) -> ScoreReport:
    """Score every image below a folder or a bucket's prefix on Ray; see `score_folder` for what a run leaves.

    A decoded shard is one piece in Ray's memory: `shard_images` times the views of an image times 3 S^2 bytes. It
    should stay below 200 MB.

    Args:
        bundle: the model. Every machine reads it from the same path.
        folder, output: on a disk that every machine has at the same path, or s3://BUCKET/PREFIX; credentials are
            those of each machine.
        cluster: where it runs, and how many actors score.
        device, weights, rebuild_index: as each actor loads the model, once; see `ModelBundle.load`.
        threshold, heatmaps, maps, batch_size, shard_images, max_pixels, rescan, retry_errors, credit: as in
            `score_folder`. There is no limit of time for a file.
        stop: asked several times a second; True ends the run, and the shards that were begun are done again.
        listener: told of progress.

    Raises:
        DatasetError, SpecError, OutputError: as in `score_folder`.
        EngineError: Ray is not installed, the cluster does not answer or is too small, or Ray failed.
        BundleError: an actor finds another model at the path.
    """
    run = open_run(
        bundle,
        folder,
        output,
        threshold=threshold,
        heatmaps=heatmaps,
        maps=maps,
        batch_size=batch_size,
        shard_images=shard_images,
        max_pixels=max_pixels,
        credit=credit,
    )
    shards = _Shards(run=run, retry_errors=retry_errors)
    started = time.perf_counter()
    with run.target.held(LOCK_FILE):
        claim(run.target, run.settings)
        run.target.sweep()
        listing = run.listing()
        with stage(listener, "list", None, "images"):
            if rescan or listing.is_interrupted:
                listing.rescan()
            for _ in _written(listing):
                pass
        before = _standing(listing, shards)
        counts = _Counts(before)
        with stage(listener, "score", listing.total, "images") as advance:
            advance(counts.images, images=0, errors=counts.errors)

            def saved(number: int, told: Mapping[str, Any]) -> None:
                del number
                counts.add(told)
                for problem in told["problems"]:
                    listener(Notice(message=problem))
                advance(told["images"], images=told["images"], errors=counts.errors)

            whole = run_on_ray(
                listing.parts,
                cluster=cluster,
                fetch=shards.fetch,
                make_worker=_MakeWorker(
                    path=bundle.path,
                    sha256=bundle.sha256,
                    device=device,
                    weights=weights,
                    rebuild_index=rebuild_index,
                    threads=cluster.cpus_per_actor,
                    shards=shards,
                ),
                save=shards.save,
                checkpoint=_checkpoint(run),
                done=sorted(before),
                saved=saved,
                stop=stop,
            )
        anomalous = run.finish(listing) if whole else run.anomalous()
    return ScoreReport(
        output=str(output),
        images=counts.images,
        anomalous=anomalous,
        rejected=counts.errors,
        resumed=sum(images for images, _ in before.values()),
        threshold=run.limit,
        stopped=not whole,
        seconds=time.perf_counter() - started,
        wait_read=0.0,
        wait_write=0.0,
    )
