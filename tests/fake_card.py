"""A card that is not there: tensors elsewhere to torch, whose values lie in the host's memory.

A `CardTensor` says that it is on "meta", a device that torch knows without hardware, and holds a CPU tensor. While
`fake_card()` is open every operation on it is done on the CPU, so that what the package does on a card gives numbers
that can be compared; and what would make the host wait for a card is counted or refused: a copy to the host, a
number, a truth value, a shape that depends on values. Mixing host and card in one operation is refused, as CUDA does.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from card_tensors import CardTensor, Crossing, held, held_or_same, wrapped
from fake_faiss import FakeCuvs, FakeFaiss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import cfa_index.bundle  # and whatever else names a device by itself
from cfa_index.bank import cuvs, faiss_gpu
from cfa_index.bank.card import _holder
from cfa_index.transfers import Uploads

__all__ = ["CardTensor", "Crossing", "FakeCard", "FakeCuvs", "FakeFaiss", "fake_card", "held"]

aten = torch.ops.aten

_WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.histc.default,
    aten.allclose.default,
    aten._linalg_check_errors.default,
    aten._linalg_svd.default,
    aten._linalg_eigh.default,
}
"""Operations that give a number or a shape that depends on values: on a card the host waits for them."""
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
_FUSED = "_get_fused_kernels_supported_devices"
_COPIES = {aten._to_copy.default, aten.copy_.default}


class FakeCard(TorchDispatchMode):
    """What happens on the card.

    Attributes:
        faiss: FAISS on it.
        cuvs: cuVS on it.
        to_host: copies to the host, by shape, while they are allowed.
        to_card: copies to the card, by shape.
        operations: done on the card, by name.
        waits: operations whose numbers or shapes the host had to wait for, while they are allowed.
        allowed: whether copies to the host and waits are counted; otherwise they are refused.
    """

    def __init__(self, faiss: FakeFaiss) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.faiss = faiss
        self.cuvs = FakeCuvs()
        self.to_host: list[tuple[int, ...]] = []
        self.to_card: list[tuple[int, ...]] = []
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.allowed = True
        self.uploading = False

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse in the body what would make the host wait: every copy to it, and every one to the card but `Uploads`'.

        A copy from memory that is not pinned, or without `non_blocking`, waits until the card's queue has come to it.
        """
        before, self.allowed = self.allowed, False
        try:
            yield
        finally:
            self.allowed = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.is_inference_mode_enabled():
            # Composed operations come whole in it, and no view can be made of what was made outside of it.
            with torch.inference_mode(False), torch.no_grad(), self:
                return func(*args, **(kwargs or {}))
        with self:  # and so do those of a tensor that was made in it
            done = func.decompose(*args, **(kwargs or {}))
        if done is not NotImplemented:
            return done
        given = dict(kwargs or {})
        flat, _ = tree_flatten((args, given))
        cards = [one for one in flat if isinstance(one, CardTensor)]
        wanted = given.get("device")
        wanted = None if wanted is None else torch.device(wanted)
        # Without a number it is torch's own, which holds shapes alone.
        to_meta = wanted is not None and wanted.type == "meta" and wanted.index is not None
        if not cards and not to_meta:
            return func(*args, **given)
        if wanted == torch.device("meta"):
            return func(*tree_map(held_or_same, args), **given)
        if func in _COPIES:
            return self._copied(func, args, given, wanted)
        if func in _WAITS:
            self._waited(f"{func}")
        if func in _INDEXING and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        ):
            self._waited(f"{func} by a mask")
        device = wanted if to_meta and wanted is not None else cards[0].device
        if wanted is not None and not to_meta:
            raise Crossing(f"{func} makes a tensor on the host from one on the card")
        for one in flat:
            if isinstance(one, torch.Generator) and one.device != device:
                raise Crossing(f"{func} draws on {device} from a generator on {one.device}")
            if isinstance(one, CardTensor) and one.device != device:
                raise Crossing(f"{func} mixes {one.device} and {device}")
            if isinstance(one, Tensor) and not isinstance(one, CardTensor):
                if one.is_meta:
                    raise Crossing(f"{func} of a number that torch.tensor copied to the card and waited for")
                index = func in _INDEXING and one is not args[0]
                if index:
                    raise Crossing(f"{func} copies an index to the card and waits for it")
                if one.ndim:
                    raise Crossing(f"{func} mixes the host's {tuple(one.shape)} and the card")
        self.operations[str(func)] += 1
        if to_meta:
            given["device"] = torch.device("cpu")
        held = tree_map(held_or_same, (args, given))
        result = func(*held[0], **held[1])
        return wrapped(func, args, given, result, device)

    def _copied(self, func: Any, args: Any, given: dict[str, Any], wanted: torch.device | None) -> Any:
        source = args[1] if func is aten.copy_.default else args[0]
        if func is aten.copy_.default:
            target = args[0]
            if not isinstance(target, CardTensor):
                self._crossed(source)
                return func(target, source.held, *args[2:], **given)
            if not isinstance(source, CardTensor):
                self._sent(source)
            func(target.held, held_or_same(source), *args[2:], **given)
            return target
        device = wanted or source.device
        given.pop("device", None)
        given.pop("non_blocking", None)
        if given.pop("pin_memory", False):
            raise Crossing("pinned memory on the card")
        if device.type == "meta":
            if not isinstance(source, CardTensor):
                self._sent(source)
            return CardTensor(func(held_or_same(source), **given), device)
        self._crossed(source)
        return func(source.held, **given)

    def _waited(self, what: str) -> None:
        if not self.allowed:
            raise Crossing(f"{what} makes the host wait for the card")
        self.waits[what] += 1

    def _sent(self, source: Tensor) -> None:
        if not self.allowed and not self.uploading:
            raise Crossing(f"a copy of {tuple(source.shape)} to the card that waits for it")
        self.to_card.append(tuple(source.shape))

    def _crossed(self, source: Tensor) -> None:
        if not self.allowed:
            raise Crossing(f"a copy of {tuple(source.shape)} to the host")
        self.to_host.append(tuple(source.shape))


@contextmanager
def fake_card(cards: int = 2) -> Iterator[FakeCard]:
    """Open fake cards: `torch.device("meta:0")` and "meta:1"; `--device cuda` and `cuda:N` name them, too.

    Tensors come and go by `.to(device)` and `.cpu()`; what came stays a `CardTensor` and can be read by `.held`.
    What FAISS does on a card is `FakeCard.faiss`, and what cuVS does, `FakeCard.cuvs`.
    """

    def resolved(name: str) -> torch.device:
        return (
            torch.device("cpu") if name == "cpu" else torch.device("meta", int(name.partition(":")[2] or 0))
        )

    card = FakeCard(faiss=FakeFaiss(cards))
    upload = Uploads.__call__

    def uploaded(uploads: Uploads, tensors: Sequence[Tensor]) -> list[Tensor]:
        before, card.uploading = card.uploading, True
        try:
            return upload(uploads, tensors)
        finally:
            card.uploading = before

    _holder.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "gpu_count",
            "take_tensors",
            "make_resources",
            "brute_force",
            "half_flat",
            "to_card",
            "search",
        ):
            patch.setattr(faiss_gpu, name, getattr(card.faiss, name))
        for name in ("has_cuvs", "require_cuvs", "build_lists", "join_graph", "walk"):
            patch.setattr(cuvs, name, getattr(card.cuvs, name))
        patch.setattr(Uploads, "__call__", uploaded)
        # The package keeps what it once gave: so it has the true one to go back to.
        assert cfa_index.resolve_device("cpu").type == "cpu"
        for module in [one for name, one in sys.modules.items() if name.partition(".")[0] == "cfa_index"]:
            if "resolve_device" in vars(module):
                patch.setattr(module, "resolve_device", resolved)
        # torch's list of devices on which one kernel does an optimiser's update; the CPU's answers for the card.
        optimizer = sys.modules["torch.optim.optimizer"]
        fused = getattr(optimizer, _FUSED)()
        patch.setattr(optimizer, _FUSED, lambda: [*fused, "meta"])
        with warnings.catch_warnings(), card:
            # torch takes a parameter that is copied to a card for one that has no values.
            warnings.filterwarnings("ignore", message=".* to a meta parameter .* which is a no-op")
            yield card
    _holder.cache_clear()
