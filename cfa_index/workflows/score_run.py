"""A scoring run as every engine sees it: where it reads and writes, its settings, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow.compute as pc

from cfa_index.bundle import ModelBundle
from cfa_index.errors import DeviceError, SpecError
from cfa_index.events import Listener
from cfa_index.places import Place, open_place
from cfa_index.specs import FeatureSpec, Precision
from cfa_index.workflows.score_heatmaps import Heatmaps
from cfa_index.workflows.score_listing import Listing, require_images
from cfa_index.workflows.score_maps import ArrayAnImage, Maps, OneArray
from cfa_index.workflows.score_parts import REPORT_FILE, Parts
from cfa_index.workflows.score_report import write_report
from cfa_index.workflows.score_target import RUN_FILE, require_apart, require_ours, write_csv

SCHEMA_VERSION = 2
DecodeOn = Literal["host", "card"]
"""Where JPEGs become pixels."""


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """What a run works with; it can be sent to another process.

    Attributes:
        source, target: of images and results.
        settings: what a rerun must have in common with it.
        model_sha: of the model.
        features: of the model: geometry and size_px.
        precision: of its backbone.
        limit: the threshold.
        batch_size, shard_images, max_pixels: as in `score_folder`.
        maps, heatmaps: where these go; None for nowhere.
        credit: whom the images are from.
        decode: where JPEGs are decoded.
    """

    source: Place
    target: Place
    settings: dict[str, Any]
    model_sha: str
    features: FeatureSpec
    precision: Precision
    limit: float | None
    batch_size: int
    shard_images: int
    max_pixels: int
    maps: Maps | None
    heatmaps: Heatmaps | None
    credit: str
    decode: DecodeOn

    @property
    def parts(self) -> Parts:
        """Where the rows go."""
        return Parts(self.target)

    def listing(self) -> Listing:
        """The list of its images, as far as it is written."""
        return Listing(self.source, self.target, self.shard_images)

    def finish(
        self, bundle: ModelBundle, listing: Listing, *, is_new: bool, gallery: int | None, listener: Listener
    ) -> None:
        """Write what is made of all parts.

        Args:
            bundle: the model.
            listing: all of it.
            is_new: whether any image was scored since the last time.
            gallery: pictures on the page; None for no page.
            listener: told of progress.

        Raises:
            OutputError: something cannot be written.
        """
        if self.maps is not None:
            self.maps.finish(listing.end_id)
        write_csv(self.parts)
        if gallery is not None and (is_new or self.target.read(REPORT_FILE) is None):
            write_report(
                bundle,
                self.source,
                self.target,
                shard_images=self.shard_images,
                threshold=self.limit,
                max_pixels=self.max_pixels,
                gallery=gallery,
                credit=self.credit,
                listener=listener,
            )

    def anomalous(self) -> int:
        """Images above the threshold so far."""
        return sum(pc.sum(table["is_anomalous"]).as_py() or 0 for table in self.parts.tables())


def open_run(
    bundle: ModelBundle,
    folder: Path | str,
    output: Path | str,
    *,
    threshold: float | None,
    heatmaps: bool,
    maps: bool,
    batch_size: int,
    shard_images: int,
    max_pixels: int,
    credit: str,
    decode: DecodeOn = "host",
) -> ScoreRun:
    """The run of some arguments of `score_folder`; nothing is written yet.

    Raises:
        DatasetError: the folder is missing or holds no image.
        SpecError: the threshold is not finite, a number is out of its range, or images with tiles are to be decoded
            on a card.
        DeviceError: the model is on no card that could decode.
        OutputError: the target lies inside the folder, is another run's, or cannot be read.
        CardMemoryError: the model's card has no room for such batches.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("shard_images", shard_images),
        ("max_pixels", max_pixels),
    ):
        if value < 1:
            raise SpecError(
                expected=f"{name} to be 1 or more", got=repr(value), remedy=f"give another value for {name}"
            )
    bundle.require_room(batch_size)
    limit = bundle.threshold_or(threshold)
    source, target = open_place(folder), open_place(output)
    require_apart(source, target)
    if target.read(RUN_FILE) is None:
        require_images(source)  # a source without any leaves no target
    features = bundle.manifest.spec.features
    _check_decode(bundle, decode)
    kept: Maps | None = None
    if maps and features.tile_px:
        kept = ArrayAnImage(target=target, size_px=features.size_px)
    elif maps:
        kept = OneArray(target=target, shard_images=shard_images, size_px=features.size_px)
    run = ScoreRun(
        source=source,
        target=target,
        settings={
            "schema_version": SCHEMA_VERSION,
            "model_sha": bundle.sha256,
            "folder": source.uri,
            "threshold": limit,
            "heatmaps": heatmaps,
            "maps": maps,
            "precision": bundle.backbone.precision,
            "compiled": bundle.backbone.compiled,
            "batch_size": batch_size,
            "shard_images": shard_images,
            "max_pixels": max_pixels,
            "decode": decode,
        },
        model_sha=bundle.sha256,
        features=features,
        precision=bundle.backbone.precision,
        limit=limit,
        batch_size=batch_size,
        shard_images=shard_images,
        max_pixels=max_pixels,
        maps=kept,
        credit=credit,
        decode=decode,
        heatmaps=Heatmaps(source=source, target=target, threshold=limit, credit=credit, max_pixels=max_pixels)
        if heatmaps
        else None,
    )
    require_ours(target, run.settings)  # before a lock is left in somebody else's folder
    return run


def _check_decode(bundle: ModelBundle, decode: DecodeOn) -> None:
    if decode not in get_args(DecodeOn):
        raise SpecError(
            expected="decode to be one of host, card",
            got=repr(decode),
            remedy="give another value for decode",
        )
    if decode == "host":
        return
    if bundle.bank.device.type == "cpu":
        raise DeviceError(
            expected="a card that decodes", got="a model on the CPU", remedy="leave --decode card out"
        )
    if bundle.manifest.spec.features.tile_px:
        raise SpecError(
            expected="a model without tiles for --decode card",
            got=f"tiles of {bundle.manifest.spec.features.tile_px} px",
            remedy="leave --decode card out: tiles are cut on the host",
        )
