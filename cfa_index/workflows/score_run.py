"""A scoring run as every engine sees it: where it reads and writes, its settings, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from cfa_index.bundle import ModelBundle
from cfa_index.errors import SpecError
from cfa_index.places import Place, open_place
from cfa_index.specs import FeatureSpec
from cfa_index.workflows.score_heatmaps import Heatmaps
from cfa_index.workflows.score_listing import Listing, require_images
from cfa_index.workflows.score_parts import Parts
from cfa_index.workflows.score_target import RUN_FILE, MapShards, require_apart, write_csv

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """What a run works with; it can be sent to another process.

    Attributes:
        source, target: of images and results.
        settings: what a rerun must have in common with it.
        model_sha: of the model.
        features: of the model: geometry and size_px.
        limit: the threshold.
        batch_size, shard_images, max_pixels: as in `score_folder`.
        maps, heatmaps: where these go; None for nowhere.
    """

    source: Place
    target: Place
    settings: dict[str, Any]
    model_sha: str
    features: FeatureSpec
    limit: float | None
    batch_size: int
    shard_images: int
    max_pixels: int
    maps: MapShards | None
    heatmaps: Heatmaps | None

    @property
    def parts(self) -> Parts:
        """Where the rows go."""
        return Parts(self.target)

    def listing(self) -> Listing:
        """The list of its images, as far as it is written."""
        return Listing(self.source, self.target, self.shard_images)

    def finish(self, listing: Listing) -> None:
        """Write what is made of all parts. Raises OutputError."""
        if self.maps is not None:
            self.maps.finish(listing.end_id)
        write_csv(self.parts)

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
) -> ScoreRun:
    """The run of some arguments of `score_folder`; nothing is written yet.

    Raises:
        DatasetError: the folder is missing or holds no image.
        SpecError: the threshold is not finite, or a number is out of its range.
        OutputError: the target lies inside the folder, or cannot be read.
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
    limit = bundle.threshold_or(threshold)
    source, target = open_place(folder), open_place(output)
    require_apart(source, target)
    if target.read(RUN_FILE) is None:
        require_images(source)  # a source without any leaves no target
    features = bundle.manifest.spec.features
    return ScoreRun(
        source=source,
        target=target,
        settings={
            "schema_version": SCHEMA_VERSION,
            "model_sha": bundle.sha256,
            "folder": source.uri,
            "threshold": limit,
            "heatmaps": heatmaps,
            "maps": maps,
            "batch_size": batch_size,
            "shard_images": shard_images,
            "max_pixels": max_pixels,
        },
        model_sha=bundle.sha256,
        features=features,
        limit=limit,
        batch_size=batch_size,
        shard_images=shard_images,
        max_pixels=max_pixels,
        maps=MapShards(target=target, shard_images=shard_images, size_px=features.size_px) if maps else None,
        heatmaps=Heatmaps(source=source, target=target, threshold=limit, credit=credit, max_pixels=max_pixels)
        if heatmaps
        else None,
    )
