"""Bytes that a model takes on a card, part by part: arithmetic from counts and shapes, nothing is looked at.

What is counted is what surely lies there. The code of CUDA's libraries, their workspaces, and what an allocator
loses between its blocks come on top; they differ by card and version. So what does not fit by this cannot fit, and
what fits may still run out; `card_memory` is there for that.

Where FAISS decides, the figures follow its 1.15 sources, named in a comment each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

_FP32, _FP16, _ID = 4, 2, 8
_NEIGHBOR = _FP32 + _ID
"""A squared distance and a row."""
_GIB = 1 << 30
_STEP = 256
"""FAISS rounds every allocation up to this (StandardGpuResources.cpp, allocMemory)."""
_WARP = 32
"""Vectors of a list are kept in blocks of so many, their dimensions interleaved (IVFFlat.cu)."""
_TILE_ROWS, _NARROW_TILE_ROWS, _NARROW = 512, 1024, 32
"""Queries whose distances FAISS holds at once, and up to which width it takes more (DistanceUtils.cuh)."""
_TILES = 2
"""FAISS computes the distances of one while it looks through the other (Distance.cu)."""
_MOMENTS = 3
"""Of AdamW with amsgrad: the mean, the mean square and its maximum."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing on the card.

    Attributes:
        name: what it is, in a word or two.
        size_bytes: how large.
        lower: what makes it smaller, as an advice.
    """

    name: str
    size_bytes: int
    lower: str


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What lies on a card at a time; footprints of things that lie there together are added.

    Attributes:
        parts: what it is made of.
    """

    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, lower: str, **sizes: int) -> Footprint:
        """Parts that the same advice makes smaller, by name (an underscore for a space)."""
        return cls(
            parts=tuple(
                Part(name=name.replace("_", " "), size_bytes=size, lower=lower)
                for name, size in sizes.items()
            )
        )

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.size_bytes for part in self.parts)

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(parts=self.parts + other.parts)

    def largest(self, count: int) -> list[Part]:
        """At most so many parts that are not empty, the largest first."""
        found = [part for part in self.parts if part.size_bytes]
        return sorted(found, key=lambda part: -part.size_bytes)[:count]

    def describe(self) -> str:
        """One line: `1.3 GiB (memories 1.0 GiB, temporary memory 256 MiB)`."""
        parts = ", ".join(
            f"{part.name} {in_words(part.size_bytes)}" for part in self.largest(len(self.parts))
        )
        return f"{in_words(self.total)} ({parts})" if parts else in_words(self.total)


def largest_of(footprints: Iterable[Footprint]) -> Footprint:
    """Of things that lie on the card one after the other, the one that takes most."""
    return max(footprints, key=lambda one: one.total)


def in_words(size_bytes: int) -> str:
    """`1.5 GiB`, `256 MiB`, `12 KiB` or `7 bytes`."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << power:
            amount = size_bytes / (1 << power)
            return f"{amount:.1f} {unit}" if amount < 10 and unit == "GiB" else f"{amount:.0f} {unit}"
    return f"{size_bytes} bytes"


RANKED_BYTES = 64 << 20
"""Memories that a card copies at once to rank a shortlist; there is one candidate of every query at least."""
SMALLER_BANK = "build with a smaller --bank-size or --gamma-d"
SMALLER_BATCH = "give a smaller --batch-size"
OTHER_INDEX = "build with --index flat, which needs nothing beside the memories"
NO_HALVES = "give --card-storage fp32"
LESS_TEMPORARY = "give a smaller --card-memory"
SMALLER_NETWORK = "build with a smaller --backbone"


def memories_footprint(count: int, width: int) -> Footprint:
    """The bank: (M, D') float32, which rank every shortlist, and their squared norms.

    An exact search reads these very vectors: `faiss.bfKnn` copies nothing that is on its card (GpuDistance.cu).
    """
    return Footprint.of(SMALLER_BANK, memories=count * width * _FP32, norms=count * _FP32)


def points_footprint(count: int, width: int, *, half_floats: bool = False) -> Footprint:
    """Points (n, d) that are compressed: themselves, and of each a distance, a cell, its place in a sorted order."""
    numbers = width * (_FP16 if half_floats else _FP32)
    return Footprint.of(SMALLER_BANK, points=count * numbers, cells=count * (2 * _NEIGHBOR + 2 * _ID))


def half_footprint(count: int, width: int) -> Footprint:
    """A `GpuIndexFlat` of half floats: these, and a norm a vector in float32 (FlatIndex.cu)."""
    return Footprint.of(NO_HALVES, half_floats=_rounded(count * width * _FP16) + _rounded(count * _FP32))


def ivf_footprint(list_sizes: Sequence[int], width: int, *, code_bits: int = 32) -> Footprint:
    """`GpuIndexIVFFlat` or `GpuIndexIVFScalarQuantizer`: centroids, and a list of codes and rows a cell.

    Args:
        list_sizes: memories in each cell.
        width: D', or what a transform before the index leaves of it.
        code_bits: a dimension's: 32 for Flat, 16 for SQfp16, 8 for SQ8.
    """
    block = code_bits * _WARP // 8 * width  # bytes of 32 vectors (IVFFlat.cu, getGpuVectorsEncodingSize_)
    codes = sum(
        _rounded(-(-size // _WARP) * block) * cells for size, cells in _counted(list_sizes)
    )  # each list is an allocation of its own, made for what it holds (IVFBase.cu, addEncodedVectorsToList_)
    # SQ8 has a least value and a range a dimension (GpuScalarQuantizer.cuh); halves and floats need none.
    trained = _rounded(2 * width * _FP32) if code_bits == 8 else 0
    return _lists(codes + trained, list_sizes, width)


def ivf_pq_footprint(list_sizes: Sequence[int], width: int, *, quantisers: int) -> Footprint:
    """`GpuIndexIVFPQ` without cuVS and tables: a byte for each of the quantisers of a memory (IVFPQ.cu)."""
    codes = sum(_rounded(size * quantisers) * cells for size, cells in _counted(list_sizes))
    centres = 2 * _rounded(256 * width * _FP32)  # kept in two orders (setPQCentroids_)
    return _lists(codes + centres, list_sizes, width)


def _lists(codes: int, list_sizes: Sequence[int], width: int) -> Footprint:
    cells = len(list_sizes)
    rows = sum(_rounded(size * _ID) * many for size, many in _counted(list_sizes))  # INDICES_64_BIT
    # The coarse quantiser is a Flat index in float32; lists have a pointer to codes, one to rows, and a length.
    centroids = _rounded(cells * width * _FP32) + _rounded(cells * _FP32) + 3 * _rounded(cells * _ID)
    return Footprint.of(OTHER_INDEX, index_lists=codes + rows, index_cells=centroids)


def granted_bytes(temporary_bytes: int, card_bytes: int) -> int:
    """What FAISS makes of the temporary memory that it is asked to take of a card that has so much in all.

    At most 1.5 GiB, 1 GiB of 8, 512 MiB of 4 (StandardGpuResources.cpp, getDefaultTempMemForGPU).
    """
    most = _GIB // 2 if card_bytes <= 4 * _GIB else _GIB if card_bytes <= 8 * _GIB else 3 * _GIB // 2
    return min(temporary_bytes, most)


def search_buffers(queries: int, count: int, width: int, k: int, *, half_floats: bool = False) -> list[int]:
    """Buffers that FAISS's exact search wants from the temporary memory, in bytes, in its order (Distance.cu).

    A buffer that did not fit would be allocated for the call and freed after it, which waits for the card
    (StandardGpuResources.cpp, TemporaryMemoryOverflow).

    Args:
        queries: n, of a search.
        count, width: M and D'.
        k: neighbours.
        half_floats: whether those are searched.
    """
    if not queries:
        return []
    element = _FP16 if half_floats else _FP32
    preferred = _NARROW_TILE_ROWS if width <= _NARROW else _TILE_ROWS
    rows = min(preferred, queries)
    columns = min(_GIB // (2 * element) // preferred, count)  # of cards up to 8 GiB fewer
    found = rows * -(-count // columns) * k
    return [
        *([queries * width * _FP16] if half_floats else []),  # as halves; norms of memories are held
        queries * _FP32,  # their norms
        *[rows * columns * _FP32] * _TILES,
        *[found * _FP32] * _TILES,
        *[found * _ID] * _TILES,
    ]


def scoring_footprint(
    *,
    images: int,
    size_px: int,
    network_bytes: int,
    patches: int,
    width: int,
    k: int,
    shortlist: int,
) -> Footprint:
    """A batch from pixels to maps at the step that takes most; model and index come besides.

    Args:
        images: B.
        size_px: S.
        network_bytes: of the backbone's forward pass at its peak, see `backbones.forward_bytes`.
        patches: of an image, h * w.
        width, k: D' and K.
        shortlist: candidates whose distances are computed again; `k` for an exact search.
    """
    pixels, n = images * 3 * size_px * size_px, images * patches
    vectors = n * width * _FP32
    forward = Footprint.of(SMALLER_BATCH, pixels=pixels, network=network_bytes)
    # Some candidates at a time: their vectors, and the differences from the queries (exact_sq_distances).
    gathered = max(vectors, min(shortlist * vectors, RANKED_BYTES))
    search = Footprint.of(
        SMALLER_BATCH,
        patches=vectors,
        neighbours=n * (shortlist + k) * _NEIGHBOR,
        re_ranking=2 * gathered,
    )
    maps = Footprint.of(SMALLER_BATCH, maps=images * size_px * size_px * _FP32, neighbours=n * k * _NEIGHBOR)
    return largest_of([forward, search, maps])


def training_footprint(
    *, images: int, shapes: Sequence[tuple[int, int, int]], width: int, k: int
) -> Footprint:
    """A step of training at its peak, in the backward pass; the bank comes besides.

    Args:
        images: B.
        shapes: (C_l, h_l, w_l) of each level, finest first.
        width: D'.
        k: K + J.
    """
    values = images * sum(math.prod(shape) for shape in shapes)
    depth = sum(channels for channels, _, _ in shapes)
    _, height, columns = shapes[0]
    n = images * height * columns
    parameters = width * (depth + 2) + width
    # phi and its moments; its gradient comes when that of the patches has gone.
    phi = (1 + _MOMENTS) * parameters * _FP32
    return Footprint.of(
        SMALLER_BATCH,
        pyramid=values * (_FP16 + _FP32),  # as the store has it, and as the products take it
        patches=3 * n * width * _FP32,  # phi(p), the bags of memories, the gradient (hypersphere.py)
        neighbours=n * k * (_NEIGHBOR + 2 * _FP32),  # with clamped distances and their gradient
    ) + Footprint.of("build with a smaller --gamma-d", descriptor=phi)


def _rounded(size: int) -> int:
    return -(-size // _STEP) * _STEP


def _counted(list_sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Each size and how many lists have it."""
    return [(size, len(list(same))) for size, same in groupby(sorted(list_sizes))]
