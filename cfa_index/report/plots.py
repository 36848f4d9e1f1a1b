"""matplotlib's one home: an optional library, used without its global state."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import OutputError
from cfa_index.files import atomic_path
from cfa_index.report.colours import heat_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#202124"
FAINT = "#6e7278"
_DPI = 120
_POINTS_A_PX = 72 / _DPI
_LETTER = 0.63
"""Width of a letter of the font, on average, over its size."""
_WIDE_RATIO = 30
"""Of the ends of a logarithmic axis: a wider one has fewer numbers to a decade."""


def require_matplotlib() -> None:
    """Raise OutputError, with what to install, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError(
            expected="the Python package matplotlib, which draws the figures",
            got="no such package",
            remedy="run: pip install 'cfa-index[figures]'",
        )


class Page:
    """A white picture laid out in pixels from its upper left corner.

    Args:
        width_px, height_px: of the picture.

    Raises:
        OutputError: matplotlib is not installed.
    """

    def __init__(self, width_px: int, height_px: int) -> None:
        require_matplotlib()
        from matplotlib.figure import Figure

        self._size_px = (width_px, height_px)
        self._figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, facecolor="white")

    def axes(self, left: int, top: int, width: int, height: int) -> Axes:
        """A place to plot in."""
        page_width, page_height = self._size_px
        place = (
            left / page_width,
            1 - (top + height) / page_height,
            width / page_width,
            height / page_height,
        )
        return self._figure.add_axes(place)

    def picture(self, left: int, top: int, pixels: NDArray[np.uint8]) -> None:
        """An image (h, w, 3), a pixel for a pixel."""
        height, width = pixels.shape[:2]
        axes = self.axes(left, top, width, height)
        axes.imshow(pixels, aspect="auto", interpolation="nearest")
        axes.set_axis_off()

    def write(
        self, left: int, top: int, text: str, *, size_px: int = 20, colour: str = INK, bold: bool = False
    ) -> None:
        """A line of text; what the font cannot draw becomes a box."""
        self._figure.text(
            left / self._size_px[0],
            1 - top / self._size_px[1],
            drawable(text),
            va="top",
            fontsize=size_px * _POINTS_A_PX,
            color=colour,
            fontweight="bold" if bold else "normal",
            parse_math=False,
        )

    def bar(
        self,
        left: int,
        top: int,
        width: int,
        height: int,
        limits: tuple[float, float],
        *,
        marks: Sequence[tuple[float, str]] = (),
        brightest: float = 1.0,
    ) -> None:
        """An upright bar of the heat colours, up to `brightest` of 1, from `limits[0]` to `limits[1]`.

        Labelled at its right; a mark is a line at a value, in a colour.
        """
        axes = self.axes(left, top, width, height)
        ramp = heat_colours(np.linspace(0, brightest, 256))[:, None]
        axes.imshow(ramp, aspect="auto", origin="lower", extent=(0, 1, *limits))
        axes.set_xticks([])
        plain_axes(axes)
        axes.yaxis.tick_right()
        for value, colour in marks:
            if limits[0] <= value <= limits[1]:
                axes.axhline(value, color="white", linewidth=4)
                axes.axhline(value, color=colour, linewidth=2)

    def save(self, path: Path, credit: str = "") -> None:
        """Write a PNG whole, its folder too; a credit becomes its text chunk `Copyright`. Raises OutputError."""
        texts = {"Software": None, **({"Copyright": credit} if credit else {})}
        with atomic_path(path) as temporary:
            self._figure.savefig(temporary, format="png", metadata=texts)


def plain_axes(axes: Axes) -> None:
    """Small faint labels and thin lines."""
    axes.tick_params(colors=FAINT, labelsize=15 * _POINTS_A_PX, length=3, width=0.6)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
        spine.set_linewidth(0.6)


def labelled_axes(axes: Axes, x_label: str, y_label: str, *, x_log: bool, y_log: bool) -> None:
    """Named axes with a faint grid over what was plotted.

    A logarithmic one has plain numbers at a few steps of each decade. A linear one holds shares: it spans a
    hundredth at least, and ends soon after 1.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator, ScalarFormatter

    plain_axes(axes)
    axes.set_xscale("log" if x_log else "linear")
    axes.set_yscale("log" if y_log else "linear")
    for side, is_log, limit in ((axes.xaxis, x_log, axes.set_xlim), (axes.yaxis, y_log, axes.set_ylim)):
        low, high = side.get_data_interval()
        if is_log and 0 < low <= high < np.inf:
            steps = (1.0, 2.0, 5.0) if high > _WIDE_RATIO * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
            side.set_major_locator(LogLocator(subs=steps))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            side.set_minor_locator(NullLocator())
            side.set_minor_formatter(NullFormatter())
            limit(low / 1.12, high * 1.12)
        elif np.isfinite([low, high]).all():
            low = min(low, high - 0.01)
            limit(low - 0.08 * (high - low), min(high + 0.08 * (high - low), 1 + 0.04 * (high - low)))
            side.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.set_xlabel(x_label, fontsize=18 * _POINTS_A_PX, color=INK)
    axes.set_ylabel(y_label, fontsize=18 * _POINTS_A_PX, color=INK)
    axes.grid(color="#eceff1", linewidth=0.8)
    axes.set_axisbelow(True)


def shortened(text: str, width_px: int, size_px: int) -> str:
    """A line that fits into a width, its beginning cut where it is longer: names differ at their ends."""
    letters = max(int(width_px / (_LETTER * size_px)), 2)
    return text if len(text) <= letters else "…" + text[1 - letters :]


def drawable(text: str) -> str:
    """Text with an empty square in place of every letter that the font does not have."""
    from matplotlib.font_manager import findfont, get_font

    font: Any = get_font(findfont("DejaVu Sans"))
    return "".join(
        letter if letter.isprintable() and font.get_char_index(ord(letter)) else "\N{WHITE SQUARE}"
        for letter in text
    )
