"""From a value in [0, 1] to a colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64
)
"""Dark to light through purple and orange: rising brightness, so it reads in grey too."""


def heat_colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours (..., 3) uint8 of values (...) in [0, 1]; values outside are clipped."""
    clipped = np.clip(values, 0, 1)
    channels = [np.interp(clipped, _STOPS, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
