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
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import cfa_index.bundle  # and whatever else names a device by itself
from cfa_index.bank import cuvs, faiss_gpu
from cfa_index.bank.card import _holder
from cfa_index.transfers import Uploads

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
            return func(*tree_map(_held, args), **given)
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
                self._sent(source)
            func(target.held, _held(source), *args[2:], **given)
            return target
        device = wanted or source.device
        given.pop("device", None)
        given.pop("non_blocking", None)
        if given.pop("pin_memory", False):
            raise Crossing("pinned memory on the card")
        if device.type == "meta":
            if not isinstance(source, CardTensor):
                self._sent(source)
            return CardTensor(func(_held(source), **given), device)
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


def held(tensor: Tensor) -> Tensor:
    """The values of a tensor on the card, without a copy that would be counted."""
    assert isinstance(tensor, CardTensor), f"it is on {tensor.device}"
    return tensor.held


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


class FakeResources:
    """FAISS's resources; counted, so that a test can say how many were made."""

    def __init__(self, temporary_bytes: int) -> None:
        self.temporary_bytes = temporary_bytes

    def setTempMemory(self, temporary_bytes: int) -> None:
        self.temporary_bytes = temporary_bytes


class FakeIndex:
    """A FAISS index on the card, which is one on the CPU; takes and gives tensors on its card only."""

    def __init__(self, index: Any, device: torch.device) -> None:
        self._index = index
        self._device = device
        self.nprobe = 1

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if isinstance(self._index, faiss.IndexIVF):
            self._index.nprobe = self.nprobe
        x = _taken(queries, self._device)
        return _given(self._index.search(x, k), self._device)


def _taken(tensor: Tensor, device: torch.device) -> NDArray[np.float32]:
    """What FAISS reads of a tensor on a card. It looks at the pointer only: all else is for us to see to."""
    assert isinstance(tensor, CardTensor), f"{type(tensor)} on {tensor.device}"
    assert tensor.device == device, f"{tensor.device}, not {device}"
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert len(tensor) > 0
    array: NDArray[np.float32] = tensor.held.detach().numpy()
    return array


def _given(
    found: tuple[NDArray[np.float32], NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, Tensor]:
    return CardTensor(torch.from_numpy(found[0]), device), CardTensor(torch.from_numpy(found[1]), device)


class FakeFaiss:
    """What stands in for `cfa_index.bank.faiss_gpu`.

    Attributes:
        made: resources, in order.
        calls: of searches, by kind.
    """

    def __init__(self, cards: int) -> None:
        self._cards = cards
        self.made: list[FakeResources] = []
        self.calls: Counter[str] = Counter()

    def gpu_count(self) -> int:
        return self._cards

    def take_tensors(self) -> None:
        """The real one would patch FAISS for the whole process."""

    def make_resources(self, number: int, temporary_bytes: int) -> FakeResources:
        assert 0 <= number < self._cards, "FAISS would end the process"
        self.made.append(FakeResources(temporary_bytes))
        return self.made[-1]

    def brute_force(
        self, resources: FakeResources, queries: Tensor, vectors: Tensor, sq_norms: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(resources, FakeResources)
        assert k <= 2048, "FAISS would end the process"
        self.calls["brute_force"] += 1
        device = queries.device
        x, y, norms = _taken(queries, device), _taken(vectors, device), _taken(sq_norms, device)
        np.testing.assert_allclose(norms, np.square(y.astype(np.float64)).sum(axis=1), rtol=1e-5, atol=1e-30)
        return _given(faiss.knn(x, y, k), device)

    def half_flat(self, resources: FakeResources, vectors: Tensor) -> FakeIndex:
        assert isinstance(resources, FakeResources)
        index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
        index.add(_taken(vectors, vectors.device))
        return FakeIndex(index, vectors.device)

    def to_card(self, resources: FakeResources, number: int, index: Any) -> FakeIndex:
        assert isinstance(resources, FakeResources)
        kinds = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
        if type(index) not in kinds:
            raise RuntimeError("This index type is not implemented on GPU.")
        return FakeIndex(_cloned(index), torch.device("meta", number))

    def search(self, index: FakeIndex, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        assert k <= 2048
        assert index.nprobe <= 2048
        self.calls["search"] += 1
        return index.search(queries, k)


def _cloned(ivf: Any) -> Any:
    """A copy of an inverted file whose lists may be mapped, which FAISS does not clone; moving reads them entry by entry."""
    mapped, owned = ivf.invlists, ivf.own_invlists
    lists = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    for cell in range(ivf.nlist):
        lists.add_entries(cell, mapped.list_size(cell), mapped.get_ids(cell), mapped.get_codes(cell))
    ivf.own_invlists, ivf.invlists = False, lists
    try:
        return faiss.clone_index(ivf)
    finally:
        ivf.invlists, ivf.own_invlists = mapped, owned


@dataclass
class FakeCuvs:
    """What stands in for `cfa_index.bank.cuvs`: every memory is looked at.

    Attributes:
        built: shapes of the vectors that graphs were built over.
        joined: neighbour lists that came to the card.
        widths: of the walks.
        short: how many of each query's rows are missing at the end, as where a walk ends early.
    """

    built: list[tuple[int, ...]] = field(default_factory=list)
    joined: list[NDArray[np.int32]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    short: int = 0

    def require_cuvs(self) -> None:
        """It is there."""

    def has_cuvs(self) -> bool:
        return True

    def build_lists(self, rows: Tensor, degree: int) -> NDArray[np.uint32]:
        xb = _taken(rows, rows.device)
        self.built.append(xb.shape)
        lists: NDArray[np.uint32] = faiss.knn(xb, xb, degree + 1)[1][:, 1:].astype(np.uint32)
        return lists

    def join_graph(self, rows: Tensor, lists: Tensor) -> NDArray[np.float32]:
        assert rows.shape[1] % 4 == 0, "cuVS would refuse rows that do not begin at 16 bytes"
        assert isinstance(lists, CardTensor)
        assert lists.dtype == torch.int32
        self.joined.append(lists.held.numpy())
        return _taken(rows, rows.device)

    def walk(self, graph: NDArray[np.float32], queries: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
        assert k <= width <= 1024
        assert width % 32 == 0
        self.widths.append(width)
        sq_distances, ids = faiss.knn(_taken(queries, queries.device), graph, k)
        if self.short:
            ids[:, -self.short :] = -1
        found = _given((sq_distances, ids), queries.device)
        return found[0], found[1].to(torch.int32)


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
