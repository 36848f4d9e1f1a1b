"""From a short name to FAISS factory strings that suit a bank's size; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfa_index.bank.cagra import CAGRA_DEGREE, FEWEST_FOR_CAGRA
from cfa_index.specs import INDEX_NAMES

_LEAST_POINTS_PER_CELL = 39
"""FAISS warns below this: centres of k-means would be poor."""
_MOST_CELLS = 8192
"""More take minutes to find for ten million vectors, and gain little."""
_PREFIXES = (16, 32, 64, 128, 256)
_WIDEST_CODE = 256
"""Directions that product quantisers see; beyond, patches differ little and each costs a quarter byte. Fewer
memories than this cannot tell the directions: they stay as they are."""
CARD_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48)
"""Bytes of a code that FAISS takes on a card whose tables are float32 (IVFPQ.cu); it has no fast scan there."""
_WIDEST_GRAPH = 256
"""A walk through a graph computes distances one by one: in 1,792 dimensions slower than Flat."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One index to try: its short name (`factory` where a user gave that) and FAISS's factory string."""

    name: str
    factory: str


def recipes_of(
    name: str, count: int, d: int, *, on_card: bool = False, with_cuvs: bool = False
) -> list[Recipe]:
    """What a name stands for over `count` vectors of `d` dimensions: the cheapest to search first.

    What a bank is too small or too narrow for is left out of a recipe. `flat` and a factory string stand for
    themselves; `auto` for the recipes of every name in turn. Of the graphs it tries `hnsw` on the CPU, and on a
    card `cagra` if cuVS is there.
    """
    if name == "auto":
        left_out = {"auto", "hnsw" if on_card else "cagra", *(() if with_cuvs else ("cagra",))}
        names = [each for each in INDEX_NAMES if each not in left_out]
        every = [one for each in names for one in recipes_of(each, count, d, on_card=on_card)]
        first: dict[str, Recipe] = {}  # a small bank has some factories under two names
        for one in every:
            first.setdefault(one.factory, one)
        return list(first.values())
    cells = f"IVF{cell_count(count)}"
    narrow = "" if d <= _WIDEST_GRAPH else f"PCA{_WIDEST_GRAPH // 2},"
    factories = {
        "flat": ["Flat"],
        "flat16": ["SQfp16"],
        "pca-refine": [f"PCA{p},Flat" for p in _PREFIXES if p <= min(d // 2, count)] or ["Flat"],
        "ivf": [f"{cells},Flat"],
        "ivf-sq8": [f"{cells},SQ8"],
        "ivf-pq": [_product_quantiser(cells, count, d, on_card=on_card)],
        "hnsw": [f"{narrow}HNSW32,Flat"],
        "cagra": [f"{narrow}CAGRA{CAGRA_DEGREE}" if count >= FEWEST_FOR_CAGRA else "Flat"],
    }
    return [Recipe(name=name, factory=factory) for factory in factories.get(name, [name])]


def cell_count(count: int) -> int:
    """Cells of a partition: the power of two near 4 sqrt(M), with enough points to each."""
    most = max(1, count // _LEAST_POINTS_PER_CELL)
    return min(_MOST_CELLS, 1 << round(math.log2(4 * math.sqrt(count))), 1 << int(math.log2(most)))


def _product_quantiser(cells: str, count: int, d: int, *, on_card: bool) -> str:
    """Two bits a direction, turned so that all carry alike: four bits for two, or, on a card, eight for four.

    A small or narrow bank's vectors stay as they are. "np": without FAISS's sorting of codes for comparisons of
    their bits, which nobody makes and a card has not; it takes 15 s for the smallest bank.
    """
    if on_card:
        most = max((bytes_ for bytes_ in CARD_CODES if 4 * bytes_ <= d), default=0)
        return f"PCAR{4 * most},{cells},PQ{most}np" if most and count > _WIDEST_CODE else f"{cells},Flat"
    pairs = min(d, _WIDEST_CODE) // 2
    return f"PCAR{2 * pairs},{cells},PQ{pairs}x4fs" if pairs and count > _WIDEST_CODE else f"{cells},Flat"
