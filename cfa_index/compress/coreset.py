"""PatchCore's memory bank (Roth et al. 2022, arXiv 2106.08265): a greedy coreset of all patches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.compress.gallery import check_enough, gather_patches
from cfa_index.compress.k_centre import greedy_k_centre
from cfa_index.compress.sample import PatchSample
from cfa_index.compress.stream import PatchStream, miscounted, no_patches
from cfa_index.errors import BankError
from cfa_index.events import Listener, Notice, ignore, stage

HELD_BYTES = 8 << 30
"""Most memory that the projected patches may take."""


def coreset_bank(
    stream: PatchStream,
    memories: int,
    *,
    images: int,
    total: int,
    eps: float,
    seed: int,
    held_bytes: int = HELD_BYTES,
    listener: Listener = ignore,
) -> PatchSample:
    """M patches that cover all others best, greedily, with the places that they come from.

    Two passes over the stream. The first holds every patch projected, in float16 as the store does:
    total * min(d, D') * 2 bytes, and 8 more a patch for its norm and distance. The second gathers the
    memories at full width. The memory of both, and the time that the greedy search will take (from its
    first pass), are announced.

    Args:
        stream: the patches.
        memories: M.
        images, total: how many images and patches the stream gives.
        eps: distortion of squared distances that Johnson and Lindenstrauss's lemma allows for; it sets d.
        seed: of the projection and of the first memory.
        held_bytes: most memory that the projected patches may take.
        listener: told of progress.

    Returns:
        Features (M, D') float32 in the order that they were picked: any first part is a coreset too.

    Raises:
        BankError: M is larger than `total`, the projected patches do not fit, or the stream has
            another number of patches.
    """
    check_enough(memories, total)
    with stage(listener, "project", images, "images") as advance:
        points = project_patches(
            stream, total=total, eps=eps, seed=seed, held_bytes=held_bytes, on_image=lambda: advance(1)
        )

    held = f"{total:,} patches held in {points.shape[1]} dimensions ({points.nbytes / 2**20:,.0f} MiB)"

    def announce(seconds: float) -> None:
        each = 1000 * seconds / memories
        listener(
            Notice(message=f"coreset: {held}; {memories:,} memories at {each:.2g} ms, about {seconds:.0f} s")
        )

    with stage(listener, "coreset", memories, "memories") as advance:
        picks = greedy_k_centre(points, memories, seed=seed, on_picks=advance, on_estimate=announce)
    del points
    with stage(listener, "gather", images, "images") as advance:
        return gather_patches(stream, picks, on_image=lambda: advance(1))


def project_patches(
    stream: PatchStream,
    *,
    total: int,
    eps: float,
    seed: int,
    held_bytes: int,
    on_image: Callable[[], None],
) -> Tensor:
    """All patches under a sparse random projection: float16 (total, min(d, D')).

    d is scikit-learn's bound for `total` points at `eps`; where it is not below D', nothing is projected.
    The mean of the first image is taken off, which moves no distance and keeps digits.

    Raises:
        BankError: see `coreset_bank`; or a feature is beyond float16.
    """
    # scikit-learn takes a while to import, and only this bank needs it.
    from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

    width = max(1, int(johnson_lindenstrauss_min_dim(total, eps=eps)))
    projection: SparseRandomProjection | None = None
    points: Tensor | None = None
    shift: NDArray[np.float32] = np.zeros(1, np.float32)
    count = 0
    for _, _, patches in stream():
        if points is None:
            full_width = patches.shape[1]
            needed = total * min(width, full_width) * 2
            if needed > held_bytes:
                raise BankError(
                    expected=f"the patches in {min(width, full_width)} dimensions to fit in {held_bytes >> 20:,} MiB",
                    got=f"{total:,} of them, {needed >> 20:,} MiB",
                    remedy="use --method kmeans, fewer images, a smaller --gamma-d or coarser --strides",
                )
            if width < full_width:
                projection = SparseRandomProjection(width, random_state=seed)
                projection.fit(np.empty((1, full_width), np.float32))
            points = torch.empty((total, min(width, full_width)), dtype=torch.float16)
            shift = patches.mean(axis=0)
        moved = patches - shift
        held = torch.from_numpy(moved if projection is None else projection.transform(moved)).half()
        if not held.isfinite().all():
            raise BankError(
                expected="features within float16's range",
                got="a larger one, or NaN",
                remedy="use --init whiten, which keeps them small, or --method random",
            )
        if count + len(held) > total:
            raise miscounted(total, f"{count + len(held)} or more")
        points[count : count + len(held)] = held
        count += len(held)
        on_image()
    if points is None:
        raise no_patches()
    if count < total:
        raise miscounted(total, str(count))
    return points
