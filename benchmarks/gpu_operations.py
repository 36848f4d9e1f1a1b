"""How many operations torch is asked for in a training step and in a batch of scoring.

On a card each of them is a launch or more, some microseconds of the host's time whatever the card's speed; a
training step is bound by them. The count needs no card. Calls of FAISS are not among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
"""Not marked as views, but no kernels either."""
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
_MASKED = {"index", "index_put", "index_put_", "_unsafe_index"}


@dataclass(frozen=True, kw_only=True)
class OperationRow:
    """What one call asked for.

    Attributes:
        job: in words.
        launches: operations that compute; views and allocations do not count.
        views: the others, which cost the host alone.
        waits: launches whose result, or its shape, the host has to wait for.
        most: the five most frequent launches.
    """

    job: str
    launches: int
    views: int
    waits: int
    most: dict[str, int]


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.launches: Counter[str] = Counter()
        self.views = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        name = func._schema.name.removeprefix("aten::")
        # Without gradients torch hands over compounds such as flatten; of an upsampling Python would make twenty.
        if func._can_decompose() and not name.startswith("upsample"):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if func.is_view or name in _FREE:
            self.views += 1
        elif func.namespace == "aten":  # not a mark for profilers
            self.launches[name] += 1
            self.waits += name in _WAITS or (name in _MASKED and _by_a_mask(args[1]))
        return func(*args, **(kwargs or {}))


def _by_a_mask(indices: Any) -> bool:
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in indices)


def count_operations(jobs: Mapping[str, Callable[[], object]]) -> list[OperationRow]:
    """Count what each job asks torch for, in a second call: the first may have something to set up."""
    rows = []
    for name, job in jobs.items():
        job()
        with _Counting() as counting:
            job()
        rows.append(
            OperationRow(
                job=name,
                launches=counting.launches.total(),
                views=counting.views,
                waits=counting.waits,
                most=dict(counting.launches.most_common(5)),
            )
        )
    return rows


def operation_table(rows: list[OperationRow]) -> str:
    """The rows as Markdown."""
    lines = ["| call | launches | views | waits | most frequent |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.job} | {row.launches} | {row.views} | {row.waits} | "
        + ", ".join(f"{name} {count}" for name, count in row.most.items())
        + " |"
        for row in rows
    ]
    return "\n".join(lines)
