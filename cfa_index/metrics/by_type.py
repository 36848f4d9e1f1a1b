"""Pixel metrics of each defect type against all good images, in one pass."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

from cfa_index.metrics.curves import Bools
from cfa_index.metrics.pixels import EXACT_PIXELS, PixelMetrics


class PixelMetricsByType:
    """One accumulator a type, the good images' among them; what is asked for is merged when it is asked for.

        by_type = PixelMetricsByType()
        by_type.update("good", good_map, no_defect)
        by_type.update("scratch", other_map, mask)
        by_type.of("scratch").aupro()   # scratches against the good images
        by_type.whole().aupro()         # the category

    The kept scores of all types together stay within `exact_pixels`, and merging shares them. In bins a
    type costs at most 35 MiB (24 of bins and 11 of bootstrap); what `of` and `whole` return costs as
    much again while it lives.

    Args:
        good: the name of the good images.
        exact_pixels, resamples, seed: as for `PixelMetrics`.

    Raises:
        SpecError: as `PixelMetrics`.
    """

    def __init__(
        self, *, good: str = "good", exact_pixels: int = EXACT_PIXELS, resamples: int = 400, seed: int = 0
    ) -> None:
        self._good = good
        self._settings = {"exact_pixels": exact_pixels, "resamples": resamples, "seed": seed}
        self._exact_pixels = exact_pixels
        self._parts = {good: self._empty()}

    @property
    def types(self) -> tuple[str, ...]:
        """The defect types so far, in the order of their names."""
        return tuple(sorted(name for name in self._parts if name != self._good))

    def update(
        self,
        defect: str,
        anomaly_map: npt.NDArray[np.float32],
        mask: Bools,
        inspected: Bools | None = None,
    ) -> None:
        """Add one image.

        Args:
            defect: its type, or the name of the good images.
            anomaly_map, mask, inspected: as for `PixelMetrics.update`.

        Raises:
            SpecError: as `PixelMetrics.update`; nothing is added then.
        """
        part = self._parts.get(defect) or self._empty()
        part.update(anomaly_map, mask, inspected, number=sum(seen.images for seen in self._parts.values()))
        self._parts[defect] = part
        if sum(seen.pixels for seen in self._parts.values()) > self._exact_pixels:
            for seen in self._parts.values():
                seen.to_bins()

    def of(self, defect: str) -> PixelMetrics:
        """The images of one defect type and all good ones; the good ones alone for a type never seen."""
        return self._merged({self._good, defect} & self._parts.keys())

    def whole(self) -> PixelMetrics:
        """All images."""
        return self._merged(self._parts.keys())

    def _empty(self) -> PixelMetrics:
        return PixelMetrics(**self._settings)

    def _merged(self, names: AbstractSet[str]) -> PixelMetrics:
        merged = self._empty()
        for name in sorted(names):
            merged.merge(self._parts[name])
        return merged
