"""The plots of a study as pictures: the three views of its page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfa_index.report.plots import FAINT, INK, Page, labelled_axes, shortened
from cfa_index.report.study_row import PALETTE, Axis, StudyRow, index_names, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_FILES = ("memory-accuracy.png", "latency-recall.png", "size-throughput.png")
_WIDTH_PX, _HEIGHT_PX = 1240, 790
_LEFT_PX, _TOP_PX, _PLOT_WIDTH_PX, _PLOT_HEIGHT_PX = 130, 96, 800, 560
_FOOTER_TOP_PX, _FOOTER_LETTERS, _FOOTER_LINES = 728, 145, 2
_LEGEND_LEFT_PX, _LEGEND_STEP_PX = 970, 36
_MARKERS = ("o", "s", "D", "^", "P", "X", "*", "h")
_POINT_AREA, _FRONTIER_AREA = 70, 130


def study_plots(rows: Sequence[StudyRow], *, title: str, facts: Sequence[str] = ()) -> list[Page]:
    """The views of the page, drawn: one a name of `PLOT_FILES`, a point a cell, the frontier ringed.

    Args:
        rows: cells; those without a figure of a view are left out of it.
        title: a line at the top; the view's own title follows it.
        facts: what holds for all cells, at the bottom.

    Raises:
        OutputError: matplotlib is not installed.
    """
    listed = list(rows)
    return [_plot(listed, x, y, f"{title}: {view}", facts) for view, x, y in views(listed)]


def _plot(rows: list[StudyRow], x: Axis, y: Axis, title: str, facts: Sequence[str]) -> Page:
    page = Page(_WIDTH_PX, _HEIGHT_PX)
    page.write(24, 22, shortened(title, _WIDTH_PX - 48, 24), size_px=24, bold=True)
    plot = page.axes(_LEFT_PX, _TOP_PX, _PLOT_WIDTH_PX, _PLOT_HEIGHT_PX)
    for place, index in enumerate(index_names(rows)):
        points = [
            (across, up, row.on_frontier)
            for row in rows
            if row.index == index and (across := x.of(row)) is not None and (up := y.of(row)) is not None
        ]
        colour, marker = PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]
        top = _TOP_PX + 10 + place * _LEGEND_STEP_PX
        _scatter(plot, points, colour, marker)
        _scatter(page.axes(_LEGEND_LEFT_PX, top, 24, 24), [(0.0, 0.0, False)], colour, marker, is_key=True)
        page.write(
            _LEGEND_LEFT_PX + 34, top + 2, shortened(index, _WIDTH_PX - _LEGEND_LEFT_PX - 44, 18), size_px=18
        )
    labelled_axes(plot, x.label, y.label, x_log=x.is_log, y_log=y.is_log)
    top = _TOP_PX + 22 + len(index_names(rows)) * _LEGEND_STEP_PX
    page.write(_LEGEND_LEFT_PX, top, "black ring: on the frontier", size_px=16, colour=FAINT)
    for number, line in enumerate(textwrap.wrap(" · ".join(facts), _FOOTER_LETTERS)[:_FOOTER_LINES]):
        page.write(24, _FOOTER_TOP_PX + 22 * number, line, size_px=15, colour=FAINT)
    return page


def _scatter(
    plot: Axes,
    points: Sequence[tuple[float, float, bool]],
    colour: str,
    marker: str,
    *,
    is_key: bool = False,
) -> None:
    for on_frontier in (False, True):
        some = [(x, y) for x, y, ringed in points if ringed is on_frontier]
        plot.scatter(
            [x for x, _ in some],
            [y for _, y in some],
            s=_FRONTIER_AREA if on_frontier else _POINT_AREA,
            c=colour,
            marker=marker,
            alpha=1 if on_frontier or is_key else 0.6,
            edgecolors=INK if on_frontier else "white",
            linewidths=1.4 if on_frontier else 0.4,
            zorder=3 if on_frontier else 2,
        )
    if is_key:
        plot.set_axis_off()
