"""What banks are made of: the adapted patches of good images, one image at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cfa_index.errors import BankError

PatchStream = Callable[[], Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]]
"""A function that gives a fresh iterator over images, or over their tiles: (row, cells, patches), the row in the
store, the (n,) int64 cells of the grid that show the image (all h*w but for padding), and their adapted
patches (n, D') float32."""
OnStep = Callable[[], None]


def nothing() -> None:
    """The step that tells nobody."""


def no_patches() -> BankError:
    """The error for a stream that gives no image."""
    return BankError(
        expected="patches of at least one image", got="none", remedy="give at least one good image"
    )


def miscounted(total: int, got: str) -> BankError:
    """The error for a stream that gives another number of patches than its caller has counted."""
    return BankError(
        expected=f"a stream of {total} patches", got=got, remedy="count the patches of the same images again"
    )
