"""What is known of an index: how it was built and tuned, and what that was measured to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

_END = 1 << 31
"""FAISS takes its parameters, and a shortlist, as C's int."""


@dataclass(frozen=True, kw_only=True)
class IndexState:
    """An index as it was built and tuned; what a manifest keeps.

    Attributes:
        name: short name of its recipe, or the factory string that was asked for.
        factory: FAISS's factory string.
        parameters: FAISS's parameters of a search, such as nprobe and efSearch.
        shortlist: candidates whose exact distances are computed; 0 for the k that are asked for.
        recall_at_1: share of held-out queries whose nearest memory is found, measured on queries that
            were not used for tuning.
        recall_at_k: mean share of the k nearest that is found; `k` is the model's K.
        queries: how many were measured, 0 where there were none.
        resident_bytes: what a search needs in memory: the index, or the vectors of Flat. The vectors
            behind an index are memory mapped besides.
        latency_ms: median over runs, for the patches of one image.
    """

    name: str = "flat"
    factory: str = "Flat"
    parameters: Mapping[str, int]
    shortlist: int = 0
    recall_at_1: float = 1.0
    recall_at_k: float = 1.0
    k: int
    queries: int
    resident_bytes: int
    latency_ms: float

    @property
    def is_flat(self) -> bool:
        """Whether it is no index at all, but every distance computed."""
        return self.factory == "Flat"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `IndexState(**values)` is the inverse."""
        return {**asdict(self), "parameters": dict(self.parameters)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises TypeError or ValueError where these are no values of a state."""
        state = cls(**values)
        parameters = isinstance(state.parameters, dict) and all(
            isinstance(name, str) and type(value) is int and 0 < value < _END
            for name, value in state.parameters.items()
        )
        numbers = (state.recall_at_1, state.recall_at_k, state.latency_ms)
        counts = (state.shortlist, state.k, state.queries, state.resident_bytes)
        words = isinstance(state.name, str) and isinstance(state.factory, str)
        if not (
            parameters
            and words
            and all(type(count) is int and 0 <= count < 1 << 63 for count in counts)
            and state.shortlist < _END
            and all(isinstance(number, int | float) for number in numbers)
        ):
            raise ValueError("an index that no build describes so")
        return state

    def describe(self) -> str:
        """In a few words: `ivf-pq (PCAR152,IVF64,PQ76x4fs; nprobe 8, shortlist 16)`."""
        if self.is_flat:
            return "flat"
        factory = "" if self.name == self.factory else f"{self.factory}; "
        return f"{self.name} ({factory}{self.describe_parameters()})"

    def describe_parameters(self) -> str:
        """What was tuned: `nprobe 8, shortlist 16`."""
        settings = [f"{name} {value}" for name, value in sorted(self.parameters.items())]
        return ", ".join([*settings, f"shortlist {self.shortlist}"] if self.shortlist else settings)


@dataclass(frozen=True, kw_only=True)
class IndexTrial:
    """An index that was tried, and what became of it.

    Attributes:
        state: None where it could not be built.
        verdict: `chosen`, or why it fell out.
    """

    name: str
    factory: str
    state: IndexState | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        state = self.state.to_dict() if self.state else None
        return {"name": self.name, "factory": self.factory, "state": state, "verdict": self.verdict}
