"""Which cells a study has: bank method x size x gamma_d x index, pruned or all of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, get_args

from cfa_index.errors import SpecError
from cfa_index.report import ratio_text
from cfa_index.specs import INDEX_NAMES, BankSpec, Compression, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination: the bank, and the index on it.

    Attributes:
        method, bank_size, gamma_d: of the bank.
        index: a short name or a FAISS factory string.
    """

    method: Compression
    bank_size: int
    gamma_d: float
    index: str

    @property
    def bank(self) -> tuple[str, int, float]:
        """What cells on the same bank have in common."""
        return self.method, self.bank_size, self.gamma_d

    def spec(self, base: ModelSpec) -> ModelSpec:
        """All settings of the cell, where `base` has those that are not swept.

        Raises:
            SpecError: no model can have them.
        """
        return replace(
            base,
            descriptor=replace(base.descriptor, gamma_d=self.gamma_d),
            bank=replace(base.bank, method=self.method, size=self.bank_size),
            index=replace(base.index, factory=self.index),
        )

    def command(self, words: Sequence[str]) -> str:
        """The shell command that builds it: `words`, such as `cfa-index build -c cable`, and the swept options."""
        swept = {
            "--method": self.method,
            "--bank-size": str(self.bank_size),
            "--gamma-d": ratio_text(self.gamma_d),
            "--index": self.index,
        }
        return shlex.join([*words, *(word for option in swept.items() for word in option)])


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """What a study sweeps, and how long it measures a cell.

    Attributes:
        methods, bank_sizes, gamma_ds, indexes: the values of each axis, no value twice.
        is_full: every combination. Otherwise the sizes times the indexes under the middle method and
            gamma_d, and these two axes by themselves under the middle size and index. The middle of an
            axis is the default of a build where it is among the values, else the first value.
        repeat: how often each image and each batch is timed.
        queries: patches on which recall and the latency of a patch are measured, at most.
    """

    methods: tuple[Compression, ...] = ("hybrid", "kmeans", "random", "coreset")
    bank_sizes: tuple[int, ...] = (784, 3136, 12544)
    gamma_ds: tuple[float, ...] = (1.0, 0.5, 0.25)
    indexes: tuple[str, ...] = ("flat", "pca-refine", "ivf", "ivf-pq", "hnsw")
    is_full: bool = False
    repeat: int = 3
    queries: int = 4096

    def __post_init__(self) -> None:
        sizeable = tuple(method for method in get_args(Compression) if method != "full")
        _check(self.methods, "methods", f"some of {', '.join(sizeable)}", lambda one: one in sizeable)
        _check(self.bank_sizes, "bank sizes", "1 or more each", lambda one: one >= 1)
        _check(self.gamma_ds, "gamma_d", "ratios in (0, 1]", lambda one: 0 < one <= 1)
        # FAISS's own words begin with a capital: `ivff` is a slip of the pen.
        named = f"some of {', '.join(INDEX_NAMES)}, or FAISS factory strings"
        _check(self.indexes, "indexes", named, lambda one: one in INDEX_NAMES or one[:1].isupper())
        for name, value in (("repeat", self.repeat), ("queries", self.queries)):
            _check((value,), name, "1 or more", lambda one: one >= 1)

    def cells(self) -> list[Cell]:
        """The cells, those of one bank behind each other, banks from small to large."""
        default = BankSpec()
        middle = (
            _middle(self.methods, default.method),
            _middle(self.bank_sizes, default.size),
            _middle(self.gamma_ds, 1.0),
            _middle(self.indexes, "flat"),
        )
        return [
            Cell(method=method, bank_size=size, gamma_d=gamma_d, index=index)
            for size, method, gamma_d, index in product(
                sorted(self.bank_sizes), self.methods, self.gamma_ds, self.indexes
            )
            if self.is_full or _is_kept((method, size, gamma_d, index), middle)
        ]


def _is_kept(values: tuple[Any, ...], middle: tuple[Any, ...]) -> bool:
    """Whether only size and index differ from the middle, or only one of the other two."""
    differs = [value != usual for value, usual in zip(values, middle, strict=True)]
    return not (differs[0] or differs[2]) or sum(differs) == 1


def _middle(values: Sequence[Any], default: Any) -> Any:
    return default if default in values else values[0]


def _check(values: Sequence[Any], name: str, expected: str, fits: Callable[[Any], bool]) -> None:
    if not values or len(set(values)) != len(values) or not all(fits(value) for value in values):
        raise SpecError(
            expected=f"{name} to be {expected}, none twice",
            got=", ".join(str(value) for value in values) or "none",
            remedy=f"give other values for {name}",
        )
