"""Score a folder of any size: listed, read, scored and written at the same time, and nothing lost on the way.

A shard of images is a part of the scores. It is written whole under a name of its own, so that a run that was
stopped at any moment goes on with the shards that are missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfa_index.bank import shared_threads
from cfa_index.bundle import ModelBundle
from cfa_index.engines import Workers
from cfa_index.errors import OutputError
from cfa_index.events import Listener, Notice, StageTotal, ignore, stage
from cfa_index.images import MAX_PIXELS, read_entry, read_for_card
from cfa_index.places import Place
from cfa_index.workflows.score_heatmaps import Heatmaps
from cfa_index.workflows.score_listing import Listing
from cfa_index.workflows.score_pipeline import Pipeline, Waits
from cfa_index.workflows.score_run import SCHEMA_VERSION, DecodeOn, open_run
from cfa_index.workflows.score_target import LOCK_FILE, claim

_TELL_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What a run left in its target.

    Attributes:
        output: the target, with run.json, parts/, scores.csv and what else was asked for.
        images, anomalous, rejected: rows, those above the threshold, those with an error.
        resumed: rows that an earlier run had left.
        threshold: that was applied.
        stopped: whether it was asked to stop before the end; the same call goes on.
        seconds: that it took.
        wait_read, wait_write: shares of them in which scoring waited for images, and for what it writes.
    """

    output: str
    images: int
    anomalous: int
    rejected: int
    resumed: int
    threshold: float | None
    stopped: bool
    seconds: float
    wait_read: float
    wait_write: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema_version": SCHEMA_VERSION, **self.__dict__}


@shared_threads()
def score_folder(
    bundle: ModelBundle,
    folder: Path | str,
    output: Path | str,
    *,
    threshold: float | None = None,
    heatmaps: bool = False,
    maps: bool = False,
    batch_size: int = 8,
    shard_images: int = 256,
    max_pixels: int = MAX_PIXELS,
    workers: int = 0,
    time_limit_s: float = 60.0,
    rescan: bool = False,
    retry_errors: bool = False,
    gallery: int | None = None,
    credit: str = "",
    decode: DecodeOn = "host",
    stop: Callable[[], bool] = lambda: False,
    listener: Listener = ignore,
) -> ScoreReport:
    """Score every image below a folder: a row an image, those that cannot be read with their error.

    Memory depends on the batch, the shard and the largest image, not on the number of images. The list of
    images is made once: a run that goes on takes it as it is. What is in the target decides what is left to do.

    Args:
        bundle: the model.
        folder: searched for images, its subfolders too; links to folders are not entered.
        output: target folder, outside `folder`.
        threshold: in place of the model's own.
        heatmaps: also write a PNG an image.
        maps: also keep the anomaly maps (images, S, S) float32, as a Zarr array; one an image with tiles.
        batch_size: images a forward pass.
        shard_images: images a part; also what is lost when a run is killed, at most.
        max_pixels: an image with more is refused before it is decoded.
        workers: processes that read images and draw heatmaps. They need a main module that can be imported
            (`if __name__ == "__main__"`); with 0, threads of this process do it.
        time_limit_s: seconds for a file, with workers only; one that takes longer is a row with an error.
        rescan: walk the folder again, and score what is new or has changed.
        retry_errors: score those images again that had an error.
        gallery: also write report.html, with pictures of so many of the highest scores; None for no page.
        credit: whom the images are from, on the page and in the pictures.
        decode: `card` decodes JPEGs there: workers only read them. Pixels and scores differ a little, see
            `images/card_decode.py`; not for models with tiles.
        stop: asked before each shard; True ends the run when the shards that were begun are written.
        listener: told of progress.

    Raises:
        DatasetError: the folder is missing or holds no image.
        SpecError: the threshold is not finite, a number is out of its range, or tiles are to be decoded on a card.
        DeviceError: the model is on no card that could decode.
        OutputError: the target belongs to another run or is at work, lies inside the folder, or cannot be
            written.
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
        decode=decode,
    )
    waits = Waits()
    started = time.perf_counter()
    with run.target.held(LOCK_FILE):
        claim(run.target, run.settings)
        run.target.sweep()
        listing = run.listing()
        list_again(listing, rescan, stop, listener)
        with (
            _swept_on_error(run.target),
            _listing_ahead(listing),
            Workers(
                workers, time_limit_s=time_limit_s, functions=(read_entry, read_for_card, Heatmaps.draw)
            ) as pool,
            stage(listener, "score", None, "images") as advance,
        ):
            progress = _Progress(listing, waits, advance, listener)
            Pipeline(
                bundle=bundle,
                run=run,
                workers=pool,
                retry_errors=retry_errors,
                stop=stop,
                advance=progress,
                listener=listener,
                waits=waits,
            ).score(listing.shards())
            progress.tell()
        stopped = progress.images != listing.total
        if not stopped:
            run.finish(
                bundle,
                listing,
                is_new=progress.resumed < progress.images,
                gallery=gallery,
                listener=listener,
            )
        anomalous = run.anomalous()
    seconds = time.perf_counter() - started
    return ScoreReport(
        output=str(output),
        images=progress.images,
        anomalous=anomalous,
        rejected=progress.errors,
        resumed=progress.resumed,
        threshold=run.limit,
        stopped=stopped,
        seconds=seconds,
        wait_read=waits.read / seconds,
        wait_write=waits.write / seconds,
    )


@contextmanager
def _swept_on_error(target: Place) -> Iterator[None]:
    """Clear away after an error what the processes that it ended were writing."""
    try:
        yield
    except BaseException:
        with suppress(OutputError):
            target.sweep()
        raise


class _Progress:
    """Counts images and tells of them, now and then; see `score_pipeline.Advance`."""

    def __init__(
        self, listing: Listing, waits: Waits, advance: Callable[..., None], listener: Listener
    ) -> None:
        self.images = self.errors = self.resumed = 0
        self._listing = listing
        self._waits = waits
        self._advance = advance
        self._listener = listener
        self._started = self._told = time.perf_counter()
        self._new = self._old = 0
        self._total: int | None = None

    def __call__(self, images: int, *, errors: int, resumed: bool = False) -> None:
        self.images += images
        self.errors += errors
        if resumed:
            self.resumed += images
            self._old += images
        else:
            self._new += images
        if time.perf_counter() - self._told > _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Tell of the images since the last time, and of the total once it is known."""
        if self._listing.total != self._total:
            self._total = self._listing.total
            self._listener(StageTotal(stage="score", total=self._total or 0))
        self._told = time.perf_counter()
        elapsed = max(self._told - self._started, 1e-9)
        figures = {
            "errors": self.errors,
            "wait_read": self._waits.read / elapsed,
            "wait_write": self._waits.write / elapsed,
        }
        for steps, scored in ((self._old, 0), (self._new, self._new)):
            if steps:
                self._advance(steps, images=scored, **figures)
        self._old = self._new = 0


def list_again(listing: Listing, rescan: bool, stop: Callable[[], bool], listener: Listener) -> None:
    """Before scoring, since it may change the list of what is scored already."""
    if rescan or listing.is_interrupted:
        with stage(listener, "list", None, "images"):
            listing.rescan(stop)
    elif listing.is_whole:
        listener(
            Notice(message="the images that an earlier run listed; --rescan looks for new and changed ones")
        )


@contextmanager
def _listing_ahead(listing: Listing) -> Iterator[None]:
    """The walk goes on in a thread of its own while the body reads its shards."""
    thread = threading.Thread(target=listing.write, name="cfa-index-list")
    thread.start()
    try:
        yield
    finally:
        listing.stop()
        thread.join()
