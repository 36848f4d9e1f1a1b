"""What a run may take of a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from cfa_index.specs.base import Spec, require

Storage: TypeAlias = Literal["fp32", "fp16"]
"""What a card searches through: the vectors themselves, or half floats whose shortlist is ranked again exactly."""
Spread: TypeAlias = Literal["replicas", "shards"]
"""What several cards hold: the whole bank each, or a range of its rows each."""
_LEAST_BYTES, _MOST_BYTES = 16 << 20, 3 << 29
"""With less a large bank would be searched a few queries at a time."""


@dataclass(frozen=True, kw_only=True)
class CardSpec(Spec):
    """How a bank lies on a card. It belongs to a run, not to a model: scores do not depend on it.

    Attributes:
        temporary_bytes: FAISS's scratch memory on each card, from 16 MiB to 1.5 GiB. It would take the latter by
            itself, in competition with torch (FAISS #1031), and takes no more whatever is asked for.
        storage: fp16 makes the search through a card's memory quicker, not smaller: the fp32 vectors, which rank
            the shortlist, stay there besides.
        spread: over several cards.
    """

    temporary_bytes: int = 256 << 20
    storage: Storage = "fp32"
    spread: Spread = "replicas"

    def __post_init__(self) -> None:
        require(
            _LEAST_BYTES <= self.temporary_bytes <= _MOST_BYTES,
            "the temporary memory of a card",
            f"from {_LEAST_BYTES} to {_MOST_BYTES} bytes (16 MiB to 1.5 GiB)",
            self.temporary_bytes,
            "leave it out for 256 MiB",
        )
        for name, kinds in (("storage", Storage), ("spread", Spread)):
            words = get_args(kinds)
            require(getattr(self, name) in words, name, f"one of {', '.join(words)}", getattr(self, name))
