"""The FAISS index over the memories."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cfa_index.specs.base import Spec, require

INDEX_NAMES = ("flat", "flat16", "pca-refine", "ivf", "ivf-sq8", "ivf-pq", "hnsw", "cagra", "auto")
"""Short names; anything else is a FAISS factory string."""


@dataclass(frozen=True, kw_only=True)
class IndexSpec(Spec):
    """Which index is asked for, and how well it has to find.

    Attributes:
        factory: a FAISS factory string, or one of `INDEX_NAMES`. `flat` is exact; `flat16` keeps half
            floats; `pca-refine` looks at leading principal directions and ranks a shortlist again;
            `ivf`, `ivf-sq8` and `ivf-pq` look into the nearest cells of a partition, the latter two at
            compressed memories; `hnsw` walks a graph; `cagra` one that a card with cuVS builds and walks,
            too; `auto` measures them all and takes the fastest that keeps within the budgets.
        min_recall: share of good patches whose nearest memory has to be found (recall@1 against Flat).
        budget_memory_bytes: most bytes that `auto` may keep resident for a search; None for no limit.
        budget_latency_ms: most milliseconds that `auto` may take for the patches of one image.
    """

    factory: str = "flat"
    min_recall: float = 0.99
    budget_memory_bytes: int | None = None
    budget_latency_ms: float | None = None

    def __post_init__(self) -> None:
        require(
            0 < len(self.factory) <= 200 and self.factory.isascii() and self.factory.isprintable(),
            "index",
            f"one of {', '.join(INDEX_NAMES)}, or a FAISS factory string",
            self.factory,
        )
        require(
            0 < self.min_recall <= 1, "min_recall", "a share in (0, 1]", self.min_recall, "write 0.99, not 99"
        )
        memory, latency = self.budget_memory_bytes, self.budget_latency_ms
        require(memory is None or memory > 0, "the memory budget", "more than 0 bytes", memory)
        require(
            latency is None or 0 < latency < math.inf, "the latency budget", "finite and more than 0", latency
        )
        require(
            (memory is None and latency is None) or self.factory == "auto",
            "index",
            "'auto' where a budget is given",
            self.factory,
            "leave out the budgets, or use --index auto",
        )
