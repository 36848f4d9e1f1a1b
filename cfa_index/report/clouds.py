"""Patch features and memories in two dimensions, before and after adaptation (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfa_index.report.colours import heat_colours
from cfa_index.report.plots import FAINT, Page, plain_axes

_PLOT_PX, _GAP_PX, _LEFT_PX = 620, 24, 70
_HEADER_PX, _LEGEND_PX, _FOOTER_PX = 96, 100, 28
_BAR_PX, _BAR_LABELS_PX = 16, 84
_NOTE_SIZE_PX = 17
_MEMORY_COLOUR, _MEMORY_SIZE, _MARKER_SIZE = "#b0b5bb", 4, 34
_BRIGHTEST = 0.9
"""Of the heat colours: beyond it they fade into the white of the page."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """The same n patches under one descriptor.

    Attributes:
        title: such as "before: phi_0".
        patches: (n, D') float32.
        scores: (n,) float32, of each patch.
    """

    title: str
    patches: NDArray[np.float32]
    scores: NDArray[np.float32]


def feature_view(
    clouds: Sequence[Cloud],
    memories: NDArray[np.float32],
    defective: NDArray[np.bool_],
    *,
    title: str,
    defective_means: str,
    footer: str = "",
) -> Page:
    """Draw one plot a cloud, side by side, on common axes and colours.

    The axes are the two principal components of the memories and of the patches in all clouds together:
    a linear picture, in which what is far apart really is, unlike that of t-SNE.

    Args:
        clouds: one or more, of the same patches.
        memories: (m, D'), drawn as small dots; they do not move.
        defective: (n,) bool, drawn as triangles.
        title: a line at the top.
        defective_means: for the legend, which patches are the triangles.
        footer: a line at the bottom, such as the credit of the images.

    Raises:
        OutputError: matplotlib is not installed.
    """
    plane = _Plane([memories, *(cloud.patches for cloud in clouds)])
    scores = np.concatenate([cloud.scores for cloud in clouds])
    low, high = float(scores.min()), float(scores.max())
    high = max(high, low + 1e-6)
    lefts = [_LEFT_PX + number * (_PLOT_PX + _GAP_PX) for number in range(len(clouds))]
    under = _HEADER_PX + _PLOT_PX
    page = Page(
        lefts[-1] + _PLOT_PX + _BAR_PX + _BAR_LABELS_PX,
        under + _LEGEND_PX + (_FOOTER_PX if footer else 0),
    )
    page.write(_GAP_PX, 16, title, size_px=25, bold=True)
    for left, cloud in zip(lefts, clouds, strict=True):
        page.write(left, 62, cloud.title, size_px=20)
        plot = page.axes(left, _HEADER_PX, _PLOT_PX, _PLOT_PX)
        colours = heat_colours(_BRIGHTEST * (cloud.scores - low) / (high - low)) / 255
        x, y = plane(memories).T
        # Between the patches that they lie among and those that should lie far from them.
        plot.scatter(x, y, s=_MEMORY_SIZE, c=_MEMORY_COLOUR, linewidths=0, zorder=2)
        for marker, which, height in (("o", ~defective, 1), ("^", defective, 3)):
            x, y = plane(cloud.patches[which]).T
            plot.scatter(
                x,
                y,
                s=_MARKER_SIZE,
                c=colours[which],
                marker=marker,
                edgecolors="white",
                linewidths=0.4,
                zorder=height,
            )
        plot.set_xlim(*plane.limits[0])
        plot.set_ylim(*plane.limits[1])
        plain_axes(plot)
        if left != lefts[0]:
            plot.set_yticklabels([])
    page.bar(lefts[-1] + _PLOT_PX + 12, _HEADER_PX, _BAR_PX, _PLOT_PX, (low, high), brightest=_BRIGHTEST)
    first, second = (f"{100 * share:.0f}%" for share in plane.shares)
    page.write(
        lefts[0],
        under + 36,
        f"horizontal and vertical: principal components, {first} and {second} of the variance; "
        "colour: patch score, before the baseline",
        size_px=_NOTE_SIZE_PX,
        colour=FAINT,
    )
    page.write(
        lefts[0],
        under + 64,
        f"grey dots: {len(memories)} memories;  ●  {(~defective).sum()} patches of good images;  "
        f"▲  {defective.sum()} {defective_means}",
        size_px=_NOTE_SIZE_PX,
    )
    if footer:
        page.write(lefts[0], under + _LEGEND_PX, footer, size_px=15, colour=FAINT)
    return page


class _Plane:
    """The plane of the two directions in which some points (n, D') vary most; maps points to (n, 2).

    Attributes:
        shares: of the variance, along each.
        limits: of the two axes, with room around the points.
    """

    def __init__(self, parts: Sequence[NDArray[np.float32]]) -> None:
        points = np.concatenate(parts).astype(np.float64)
        self._mean = points.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(points, rowvar=False).reshape(points.shape[1], -1))
        found = vectors[:, ::-1][:, :2]
        found = found * np.sign(
            found[np.abs(found).argmax(axis=0), range(found.shape[1])]
        )  # one sign, always
        self._axes = np.zeros((points.shape[1], 2))  # a descriptor of one dimension has no second axis
        self._axes[:, : found.shape[1]] = found
        variances = np.clip(np.append(values[::-1], 0.0), 0, None)
        self.shares = variances[:2] / max(variances.sum(), 1e-30)
        places = self(points)
        lowest, highest = places.min(axis=0), places.max(axis=0)
        room = 0.05 * np.maximum(highest - lowest, 1e-6)
        self.limits = list(zip((lowest - room).tolist(), (highest + room).tolist(), strict=True))

    def __call__(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        places: NDArray[np.float64] = (points - self._mean) @ self._axes
        return places
