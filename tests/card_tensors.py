"""Tensors that are elsewhere to torch, on "meta", and hold CPU values: what lies on a fake card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map


class Crossing(AssertionError):  # noqa: N818 - it is what happened
    """What would have made the host wait for the card, or would have failed on one."""


class CardTensor(Tensor):
    """A tensor on the fake card."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> CardTensor:
        made: CardTensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=held.requires_grad,
        )
        made.held = held.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CardTensor({self.held!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise Crossing(f"{func} on the fake card while it is not open")


def held(tensor: Tensor) -> Tensor:
    """The values of a tensor on the card, without a copy that would be counted."""
    assert isinstance(tensor, CardTensor), f"it is on {tensor.device}"
    return tensor.held


def held_or_same(value: Any) -> Any:
    return value.held if isinstance(value, CardTensor) else value


def wrapped(func: Any, args: Any, given: Any, result: Any, device: torch.device) -> Any:
    """Results on the card; those that are an argument (in place, out=) are that argument."""
    known = {id(one.held): one for one in tree_flatten((args, given))[0] if isinstance(one, CardTensor)}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, CardTensor):
            return value
        return known[id(value)] if id(value) in known else CardTensor(value, device)

    return tree_map(wrap, result)
