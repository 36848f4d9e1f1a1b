"""A card that is not there: tensors elsewhere to torch, whose values lie in the host's memory.

A `CardTensor` says that it is on "meta", a device that torch knows without hardware, and holds a CPU tensor. While
`fake_card()` is open every operation on it is done on the CPU, so that what the package does on a card gives numbers
that can be compared; and what would make the host wait for a card is counted or refused: a copy to the host, a
number, a truth value, a shape that depends on values. Mixing host and card in one operation is refused, as CUDA does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten

_WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
"""Operations that give a number or a shape that depends on values: on a card the host waits for them."""
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
_COPIES = {aten._to_copy.default, aten.copy_.default}


class Crossing(AssertionError):
    """What would have made the host wait for the card, or would have failed on one."""


class CardTensor(Tensor):
    """A tensor on the fake card."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> CardTensor:
        made: CardTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
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

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"CardTensor({self.held!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise Crossing(f"{func} on the fake card while it is not open")


@dataclass
class FakeCard(TorchDispatchMode):
    """What happened on it.

    Attributes:
        to_host: copies to the host, by shape, while they are allowed.
        to_card: copies to the card, by shape.
        operations: done on the card, by name.
        allowed: whether copies to the host are counted; otherwise they are refused.
    """

    to_host: list[tuple[int, ...]] = field(default_factory=list)
    to_card: list[tuple[int, ...]] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)
    allowed: bool = True

    def __post_init__(self) -> None:
        super().__init__()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse every copy to the host in the body."""
        before, self.allowed = self.allowed, False
        try:
            yield
        finally:
            self.allowed = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if torch.is_inference_mode_enabled():  # where operations come before they are taken apart
            with self:
                result = func.decompose(*args, **given)
            if result is not NotImplemented:
                return result
            with torch.inference_mode(False), torch.no_grad():  # its tensors could not be views of others
                return self._done(func, args, given)
        return self._done(func, args, given)

    def _done(self, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        flat, _ = tree_flatten((args, given))
        cards = [one for one in flat if isinstance(one, CardTensor)]
        wanted = given.get("device")
        wanted = None if wanted is None else torch.device(wanted)
        to_meta = wanted is not None and wanted.type == "meta"
        if not cards and not to_meta:
            return func(*args, **given)
        if func in _COPIES:
            return self._copied(func, args, given, wanted)
        if func in _WAITS:
            raise Crossing(f"{func} makes the host wait for the card")
        if func in _INDEXING and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        ):
            raise Crossing(f"{func} by a mask makes the host wait for the card")
        device = wanted if to_meta else cards[0].device
        if wanted is not None and not to_meta:
            raise Crossing(f"{func} makes a tensor on the host from one on the card")
        for one in flat:
            if isinstance(one, CardTensor) and one.device != device:
                raise Crossing(f"{func} mixes {one.device} and {device}")
            if isinstance(one, Tensor) and not isinstance(one, CardTensor):
                index = func in _INDEXING and one is not args[0]
                if index:
                    raise Crossing(f"{func} copies an index to the card and waits for it")
                if one.ndim:
                    raise Crossing(f"{func} mixes the host's {tuple(one.shape)} and the card")
        self.operations[str(func)] += 1
        if to_meta:
            given["device"] = torch.device("cpu")
        held = tree_map(_held, (args, given))
        result = func(*held[0], **held[1])
        return _wrapped(func, args, given, result, device)

    def _copied(self, func: Any, args: Any, given: dict[str, Any], wanted: torch.device | None) -> Any:
        source = args[1] if func is aten.copy_.default else args[0]
        if func is aten.copy_.default:
            target = args[0]
            if not isinstance(target, CardTensor):
                self._crossed(source)
                return func(target, source.held, *args[2:], **given)
            if not isinstance(source, CardTensor):
                self.to_card.append(tuple(source.shape))
            func(target.held, _held(source), *args[2:], **given)
            return target
        device = wanted or source.device
        given.pop("device", None)
        given.pop("non_blocking", None)
        if given.pop("pin_memory", False):
            raise Crossing("pinned memory on the card")
        if device.type == "meta":
            if not isinstance(source, CardTensor):
                self.to_card.append(tuple(source.shape))
            return CardTensor(func(_held(source), **given), _numbered(device))
        self._crossed(source)
        return func(source.held, **given)

    def _crossed(self, source: Tensor) -> None:
        if not self.allowed:
            raise Crossing(f"a copy of {tuple(source.shape)} to the host")
        self.to_host.append(tuple(source.shape))


def _numbered(device: torch.device) -> torch.device:
    return device


def _held(value: Any) -> Any:
    return value.held if isinstance(value, CardTensor) else value


def _wrapped(func: Any, args: Any, given: Any, result: Any, device: torch.device) -> Any:
    """Results on the card; those that are an argument (in place, out=) are that argument."""
    known = {id(one.held): one for one in tree_flatten((args, given))[0] if isinstance(one, CardTensor)}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, CardTensor):
            return value
        return known[id(value)] if id(value) in known else CardTensor(value, device)

    return tree_map(wrap, result)


@contextmanager
def fake_card() -> Iterator[FakeCard]:
    """Open the fake card: `torch.device("meta:0")`, and "meta:1" beside it.

    Tensors come and go by `.to(device)` and `.cpu()`; what came stays a `CardTensor` and can be read by `.held`.
    """
    with FakeCard() as card:
        yield card
