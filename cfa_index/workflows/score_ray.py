"""Score a folder on many machines: the shards of the list on Ray, with the rows that one machine gives.

    list (here) --> fetch and decode a shard (tasks) --> score_images (actors) --> maps, heatmaps, rows (tasks)

The pieces of work are the shards, so that batches and parts are those of `score_folder`, and either goes on with
what the other has left. The walk ends before Ray begins.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cfa_index.bank import set_threads
from cfa_index.bundle import ModelBundle
from cfa_index.devices import reuse_freed_memory
from cfa_index.engines import Payload, RayCluster, run_on_ray
from cfa_index.errors import BundleError
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.images import MAX_PIXELS
from cfa_index.places import LocalPlace, Place, open_place
from cfa_index.specs import CardSpec
from cfa_index.workflows.score import ScoreReport, list_again
from cfa_index.workflows.score_listing import Listing, read_shard, uri_of
from cfa_index.workflows.score_parts import Row, rows_bytes, standing, to_score
from cfa_index.workflows.score_rows import Scored, score_images
from cfa_index.workflows.score_run import ScoreRun, open_run
from cfa_index.workflows.score_shards import (
    ShardReader,
    ShardWriter,
    Told,
    reads_of,
)
from cfa_index.workflows.score_target import LOCK_FILE, claim

CHECKPOINT = "checkpoint"
_LOOKING = 16
"""Threads that look for what is done: each waits for a disk or a server most of the time."""
_POLL_S = 0.2


def score_folder_on_ray(
    bundle: ModelBundle,
    folder: Path | str,
    output: Path | str,
    *,
    cluster: RayCluster,
    device: str = "cpu",
    card: CardSpec = CardSpec(),
    weights: Path | None = None,
    rebuild_index: bool = False,
    compiled: bool = False,
    threshold: float | None = None,
    heatmaps: bool = False,
    maps: bool = False,
    batch_size: int = 8,
    shard_images: int = 256,
    max_pixels: int = MAX_PIXELS,
    rescan: bool = False,
    retry_errors: bool = False,
    gallery: int | None = None,
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
        device, card, weights, rebuild_index, compiled: as each actor loads the model, once, at the precision of
            `bundle`; see `ModelBundle.load`.
        threshold, heatmaps, maps, batch_size, shard_images, max_pixels, rescan, retry_errors, gallery, credit: as in
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
        _everywhere(folder),
        _everywhere(output),
        threshold=threshold,
        heatmaps=heatmaps,
        maps=maps,
        batch_size=batch_size,
        shard_images=shard_images,
        max_pixels=max_pixels,
        credit=credit,
    )
    reader = ShardReader(
        source=run.source,
        target=run.target,
        features=run.features,
        shard_images=shard_images,
        max_pixels=max_pixels,
        retry_errors=retry_errors,
    )
    writer = ShardWriter(
        target=run.target,
        shard_images=shard_images,
        maps=run.maps,
        heatmaps=run.heatmaps,
    )
    load = _Load(
        run=run,
        path=bundle.path.absolute(),
        device=device,
        card=card,
        weights=weights.absolute() if weights else None,
        rebuild_index=rebuild_index,
        compiled=compiled,
        threads=cluster.cpus_per_actor,
    )
    started = time.perf_counter()
    with run.target.held(LOCK_FILE):
        claim(run.target, run.settings)
        run.target.sweep()
        listing = run.listing()
        list_again(listing, rescan, stop, listener)
        whole = _list_to_the_end(listing, stop, listener)
        before = _left_before(run, listing.parts, retry_errors) if whole else []
        images = resumed = sum(left.images for left in before)
        errors = sum(left.errors for left in before)
        if whole:
            with stage(listener, "score", listing.total, "images") as advance:
                advance(images, images=0, errors=errors)

                def saved(told: Told) -> None:
                    nonlocal images, errors
                    images += told["images"]
                    errors += told["errors"]
                    for problem in told["problems"]:
                        listener(Notice(message=problem))
                    advance(told["images"], images=told["images"], errors=errors)

                whole = run_on_ray(
                    listing.parts,
                    cluster=cluster,
                    fetch=reader,
                    make_worker=load,
                    save=writer,
                    checkpoint=_checkpoint_of(run.target),
                    done=[number for number, left in enumerate(before) if left.is_done],
                    saved=saved,
                    stop=stop,
                )
        if whole:
            run.finish(bundle, listing, is_new=resumed < images, gallery=gallery, listener=listener)
        anomalous = run.anomalous()
    return ScoreReport(
        output=str(output),
        images=images,
        anomalous=anomalous,
        rejected=errors,
        resumed=resumed,
        threshold=run.limit,
        stopped=not whole,
        seconds=time.perf_counter() - started,
        wait_read=0.0,
        wait_write=0.0,
    )


def _everywhere(where: Path | str) -> Path | str:
    """A place as a process with another working directory understands it."""
    place = open_place(where)
    return place.root.absolute() if isinstance(place, LocalPlace) else where


def _list_to_the_end(listing: Listing, stop: Callable[[], bool], listener: Listener) -> bool:
    """Walk the source; whether it came to the end, a rescan before it too. Raises DatasetError, OutputError."""
    walk = threading.Thread(target=listing.write, name="cfa-index-list")
    with stage(listener, "list", None, "shards") as advance:
        walk.start()
        known = 0
        try:
            while walk.is_alive():
                walk.join(_POLL_S)
                advance(listing.parts - known, images=0)
                known = listing.parts
                if stop():
                    listing.stop()
        finally:
            listing.stop()
            walk.join()
    listing.check()
    return listing.total is not None and not listing.is_interrupted


@dataclass(frozen=True, kw_only=True)
class _Left:
    """What an earlier run left of a shard: rows that stay, those of them with an error, and whether that is all."""

    images: int
    errors: int
    is_done: bool


def _left_before(run: ScoreRun, shards: int, retry_errors: bool) -> list[_Left]:
    """For each shard."""

    def look(number: int) -> _Left:
        shard = read_shard(run.target, number, run.shard_images)
        rows = run.parts.read(shard)
        again = to_score(rows, retry_errors=retry_errors)
        kept = standing(rows, again)
        errors = sum(row["error"] is not None for row in kept)
        return _Left(images=len(kept), errors=errors, is_done=not again)

    with ThreadPoolExecutor(_LOOKING, thread_name_prefix="cfa-index-look") as pool:
        return list(pool.map(look, range(shards)))


def _checkpoint_of(target: Place) -> str:
    """Where Ray's checkpoint lies, as Ray wants it said: an absolute path or a URI."""
    root = str(target.root.resolve()) if isinstance(target, LocalPlace) else target.uri
    return f"{root}/{CHECKPOINT}"


@dataclass(frozen=True, kw_only=True)
class _Load:
    """Makes the worker of an actor.

    Attributes:
        run: what it works for.
        path: the generation.
        device, card, weights, rebuild_index, compiled: see `ModelBundle.load`.
        threads: that it may use.
    """

    run: ScoreRun
    path: Path
    device: str
    card: CardSpec
    weights: Path | None
    rebuild_index: bool
    compiled: bool
    threads: int

    def __call__(self) -> Callable[[int, Payload], Payload]:
        """Load the model.

        Raises:
            BundleError: it is missing or damaged on this machine, or another one.
            CardMemoryError: this machine's card has no room for it and its batches.
        """
        reuse_freed_memory()
        set_threads(self.threads)
        bundle = ModelBundle.load(
            self.path,
            device=self.device,
            card=self.card,
            weights=self.weights,
            rebuild_index=self.rebuild_index,
            precision=self.run.precision,
            compiled=self.compiled,
        )
        if bundle.sha256 != self.run.model_sha:
            raise BundleError(
                expected=f"model {self.run.model_sha[:12]} at {self.path} on every machine",
                got=bundle.sha256[:12],
                remedy="copy the same model to all of them",
            )
        bundle.require_room(self.run.batch_size)
        return _ShardScorer(self.run, bundle)


class _ShardScorer:
    """Scores what was read of a shard."""

    def __init__(self, run: ScoreRun, bundle: ModelBundle) -> None:
        self._run = run
        self._bundle = bundle

    def __call__(self, number: int, payload: Payload) -> Payload:
        """From what `ShardReader` gave to what `ShardWriter` takes."""
        run = self._run
        shard = read_shard(run.target, number, run.shard_images)
        positions: list[int] = json.loads(payload["positions"])
        rows: list[Row] = json.loads(payload["rows"])
        scored = list(
            score_images(
                self._bundle.scorer,
                reads_of(payload, run.features.size_px),
                features=run.features,
                batch_size=run.batch_size,
                keep_maps=run.maps is not None or run.heatmaps is not None,
            )
        )
        for position, one in zip(positions, scored, strict=True):
            uri = uri_of(shard.entries[position].path)
            rows[position] = one.row(shard.first_id + position, uri, run.limit, run.model_sha)
        problems = [f"left out: {one.error}" for one in scored if one.error is not None]
        told: Told = {"images": len(scored), "errors": len(problems), "problems": problems}
        result = {"part": rows_bytes(shard, rows), "told": json.dumps(told).encode()}
        if run.maps is not None or run.heatmaps is not None:
            result |= _maps_of(positions, scored)
        return result


def _maps_of(positions: Sequence[int], scored: Sequence[Scored]) -> dict[str, bytes]:
    maps = [one.anomaly_map for one in scored if one.anomaly_map is not None]
    told = [
        None
        if one.frame is None or one.anomaly_map is None
        else {"frame": asdict(one.frame), "shape": one.anomaly_map.shape}
        for one in scored
    ]
    return {
        "positions": json.dumps(positions).encode(),
        "frames": json.dumps(told).encode(),
        "maps": b"".join(np.ascontiguousarray(one, np.float32).tobytes() for one in maps),
    }
