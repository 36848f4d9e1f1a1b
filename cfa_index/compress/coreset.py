"""PatchCore's memory bank (Roth et al. 2022, arXiv 2106.08265): a greedy coreset of all patches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfa_index.compress.gallery import check_enough, gather_patches
from cfa_index.compress.k_centre import greedy_k_centre
from cfa_index.compress.products import product_on
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
    device: torch.device = torch.device("cpu"),
    listener: Listener = ignore,
) -> PatchSample:
    """M patches that cover all others best, greedily, with the places that they come from.

    Two passes over the stream. The first holds every patch projected, in float16 as the store does:
    total * min(d, D') * 2 bytes, and 8 more a patch for its norm and distance. The second gathers the
    memories at full width. What the first holds, and the time that the greedy search may take (from its
    first pass), are announced.

    Args:
        stream: the patches.
        memories: M.
        images, total: how many images and patches the stream gives.
        eps: distortion of squared distances that Johnson and Lindenstrauss's lemma allows for; it sets d.
        seed: of the projection and of the first memory.
        held_bytes: most memory that the projected patches may take.
        device: where they are projected and picked; a card holds them too, where there is room.
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
            stream,
            total=total,
            eps=eps,
            seed=seed,
            held_bytes=held_bytes,
            device=device,
            on_image=lambda: advance(1),
        )
    held = f"{total:,} patches held in {points.shape[1]} dimensions ({points.nbytes / 2**20:,.0f} MiB)"

    def announce(seconds: float) -> None:
        each = 1000 * seconds / memories
        listener(
            Notice(message=f"coreset: {held}; {memories:,} memories at {each:.2g} ms, about {seconds:.0f} s")
        )

    with stage(listener, "coreset", memories, "memories") as advance:
        picks = greedy_k_centre(
            points, memories, seed=seed, device=device, on_picks=advance, on_estimate=announce
        )
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
    device: torch.device = torch.device("cpu"),
    on_image: Callable[[], None],
) -> Tensor:
    """All patches under a sparse random projection, made on a device: float16 (total, min(d, D')) on the host.

    Where d is not below D', nothing is projected. The mean of the first image is taken off, which moves
    no distance and keeps digits.

    Raises:
        BankError: see `coreset_bank`; or a feature is beyond float16.
    """
    points: Tensor | None = None
    count = 0
    for _, _, patches in stream():
        if points is None:
            full_width = patches.shape[1]
            width = min(projected_width(total, eps), full_width)
            if total * width * 2 > held_bytes:
                raise BankError(
                    expected=f"the patches in {width} dimensions to fit in {held_bytes >> 20:,} MiB",
                    got=f"{total:,} of them, {total * width * 2 >> 20:,} MiB",
                    remedy="use --method kmeans, fewer images, a smaller --gamma-d or coarser --strides",
                )
            points = torch.empty((total, width), dtype=torch.float16)
            shift = patches.mean(axis=0)
            projection = sparse_projection(full_width, width, seed) if width < full_width else None
        moved = patches - shift
        held = torch.from_numpy(moved if projection is None else product_on(device, moved, projection)).half()
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


def projected_width(count: int, eps: float) -> int:
    """d: dimensions that keep all squared distances of `count` points within 1 +- eps.

    Johnson and Lindenstrauss's lemma as Dasgupta and Gupta (2003) bound it, the bound that PatchCore takes.
    """
    return max(1, int(4 * math.log(count) / (eps**2 / 2 - eps**3 / 3)))


def sparse_projection(width: int, projected: int, seed: int) -> NDArray[np.float32]:
    """(D', d) with entries -s, 0, s, a share 1/sqrt(D') of them not 0 (Li, Hastie and Church 2006).

    s = (share * d)^-1/2, so that a projected vector has its squared length in the mean.
    """
    share = width**-0.5
    signs = np.random.default_rng(seed).choice(
        [-1, 0, 1], size=(width, projected), p=[share / 2, 1 - share, share / 2]
    )
    return (signs / math.sqrt(share * projected)).astype(np.float32)
