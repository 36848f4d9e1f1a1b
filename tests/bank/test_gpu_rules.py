"""The rules of docs/gpu-rules.md that can be checked without a card."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import cfa_index
from cfa_index.bank import MemoryBank, card as cards, faiss_gpu
from cfa_index.bank.card import Card, card_of, flat_queries, require_selectable
from cfa_index.bank.card_index import CardInverted, inverted_queries, moves_to_card
from cfa_index.errors import BankError, DeviceError
from cfa_index.specs import CardSpec

BANK = Path(cfa_index.__file__).parent / "bank"
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    "GPU" not in faiss.get_compile_options(), reason="a FAISS without GPU support"
)


@pytest.fixture(scope="module", autouse=True)
def torch_utils() -> Any:
    from faiss.contrib import torch_utils

    return torch_utils


def test_the_table_names_what_is_there() -> None:
    """Where a rule is obeyed, by docs/gpu-rules.md, has to be in a source."""
    package = BANK.parent
    sources = " ".join(file.read_text() for file in package.rglob("*.py"))
    rows = [line.split(" | ") for line in (package.parent / "docs" / "gpu-rules.md").read_text().splitlines()]
    places = [place for row in rows if len(row) == 3 for place in re.findall(r"`([^`]+)`", row[1])]
    assert len(places) > 20
    for place in places:
        assert (package / place).exists() or place.split(".")[-1] in sources, place


# --- what faiss.contrib.torch_utils does, and refuses


def test_importing_it_replaces_the_functions_for_the_whole_process() -> None:
    for kind in (faiss.IndexFlatL2, faiss.IndexIVFFlat, faiss.GpuIndexFlat, faiss.GpuIndexIVFFlat):
        assert kind.search.__name__ == "torch_replacement_search"
    assert faiss.knn_gpu.__name__ == "torch_replacement_knn_gpu"
    xb = np.eye(4, dtype=np.float32)
    index = faiss.IndexFlatL2(4)
    index.add(xb)
    assert isinstance(index.search(xb, 1)[0], np.ndarray)  # arrays still work
    assert isinstance(index.reconstruct_n(0, 2), torch.Tensor)  # without an output, it is a tensor now


def test_no_source_lets_faiss_choose_what_it_reconstructs_into() -> None:
    outputs = {"reconstruct": 2, "reconstruct_n": 3, "reconstruct_batch": 2}
    for file in BANK.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given_to = outputs.get(node.func.attr)
                assert given_to is None or len(node.args) == given_to, f"{file.name}:{node.lineno}"


@pytest.mark.parametrize(
    "queries",
    [
        torch.nn.Parameter(torch.zeros(2, 4), requires_grad=False),
        torch.zeros(2, 8)[:, ::2],
        torch.zeros(2, 4, dtype=torch.float64),
        torch.zeros(2, 4, dtype=torch.float16),
    ],
    ids=["a subclass", "not contiguous", "float64", "float16"],
)
def test_only_contiguous_float32_tensors_are_taken(queries: torch.Tensor) -> None:
    index = faiss.IndexFlatL2(4)
    index.add(np.eye(4, dtype=np.float32))
    with pytest.raises(AssertionError):
        index.search(queries, 1)


def test_a_tensor_on_a_card_is_refused_by_an_index_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, replicas and linear maps before an index are such indexes: none of them has a `getDevice`."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    for index in (faiss.IndexFlatL2(4), faiss.index_factory(4, "PCA2,Flat"), faiss.IndexReplicas(4)):
        with pytest.raises(AssertionError, match="GPU tensor on CPU index not allowed"):
            index.search(torch.zeros(2, 4), 1)


class Recorded:
    """Resources that write down the streams they are given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, Any]] = []

    def getDefaultStream(self, device: int) -> str:
        return f"own stream of {device}"

    def setDefaultStream(self, device: int, stream: Any) -> None:
        self.calls.append(("set", device, stream))


def test_the_stream_is_set_for_the_current_device_whatever_the_resources_are_for(
    torch_utils: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So `Card.turn` has to make the card current; and the old stream comes back after an error."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 64}))
    resources = Recorded()
    with pytest.raises(ZeroDivisionError), torch_utils.using_stream(resources):
        raise ZeroDivisionError
    assert [call[:2] for call in resources.calls] == [("set", 1), ("set", 1)]
    assert int(resources.calls[0][2]) == 64
    assert resources.calls[1][2] == "own stream of 1"


# --- one object of resources a process and card, one thread at a time


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """FAISS says that it sees two cards; what its resources are told is written down."""
    told: list[tuple[str, int]] = []

    class Resources:
        def __init__(self) -> None:
            told.append(("made", 0))

        def __getattr__(self, name: str) -> Callable[[int], None]:
            return lambda size: told.append((name, size))

    monkeypatch.setattr(faiss_gpu, "gpu_count", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources)
    cards._holder.cache_clear()
    yield told
    cards._holder.cache_clear()


def test_one_object_of_resources_a_card(two_cards: list[tuple[str, int]]) -> None:
    first, second = torch.device("meta:0"), torch.device("meta:1")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: card_of(first, CardSpec()), range(32)))
    assert len({id(card) for card in made}) == 1
    assert card_of(second, CardSpec()) is not made[0]
    assert two_cards.count(("made", 0)) == 2


def test_what_resources_may_take_is_said_before_their_first_use(two_cards: list[tuple[str, int]]) -> None:
    """Pinned memory can be set only then: later it ends the process. And the first use is at once, while there is
    room that was looked at: it, too, ends the process where something is missing (StandardGpuResources.cpp)."""
    card_of(torch.device("meta:0"), CardSpec(temporary_bytes=64 * MIB))
    set_up = [("made", 0), ("setPinnedMemory", 0), ("setTempMemory", 64 * MIB), ("getDefaultStream", 0)]
    assert two_cards == set_up
    card_of(torch.device("meta:0"), CardSpec(temporary_bytes=32 * MIB))  # an index needs what it was given
    assert two_cards == set_up
    card_of(torch.device("meta:0"), CardSpec(temporary_bytes=128 * MIB))
    assert two_cards[4:] == [("setTempMemory", 128 * MIB)]


def test_a_card_that_faiss_does_not_see_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any call that would end the process."""
    monkeypatch.setattr(faiss_gpu, "make_resources", lambda *_: pytest.fail("resources were made"))
    number = faiss_gpu.gpu_count()
    with pytest.raises(DeviceError, match=f"expected a FAISS that sees CUDA device {number}") as error:
        card_of(torch.device("cuda", number), CardSpec())
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a card answers")
def test_a_bank_on_no_card_is_our_error_not_torchs() -> None:
    with pytest.raises(DeviceError, match="expected a FAISS that sees CUDA device 0") as error:
        MemoryBank(np.eye(4, dtype=np.float32), torch.device("cuda"))
    assert "\n" not in str(error.value)


def test_in_a_turn_the_card_is_torchs_current_device(
    two_cards: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[int] = []

    @contextmanager
    def device(which: int) -> Iterator[None]:
        entered.append(which)
        yield
        entered.append(-1)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(cards, "make_room", lambda *_: None)
    with Card(torch.device("cuda:1"), MIB).turn():
        assert entered == [1]
    assert entered == [1, -1]


def test_a_second_thread_waits_for_its_turn(two_cards: list[tuple[str, int]]) -> None:
    card, order, begun = Card(torch.device("meta:0"), MIB), [], threading.Event()

    def second() -> None:
        begun.set()
        with card.turn():
            order.append("second")

    with card.turn():
        other = threading.Thread(target=second)
        other.start()
        begun.wait()
        with card.turn():  # its own thread may go on
            order.append("first")
    other.join()
    assert order == ["first", "second"]


# --- limits


def test_more_than_faiss_selects_is_refused_before_it_is_called(two_cards: list[tuple[str, int]]) -> None:
    """The brute force would end the process (Distance.cu)."""
    require_selectable(2048)
    with pytest.raises(BankError, match="at most 2048 neighbours"):
        require_selectable(2049)
    many = CardInverted(None, Card(torch.device("meta:0"), MIB), np.ones(3000, np.int64))
    many.nprobe = 2049
    with pytest.raises(BankError, match="at most 2048 cells"):
        many.search(torch.zeros(1, 4), 1)


@pytest.mark.parametrize(
    ("queries", "got"),
    [
        (torch.zeros(2, 4), "torch.float32 on cpu"),
        (torch.zeros(2, 4, device="meta", dtype=torch.float16), "torch.float16 on meta"),
    ],
)
def test_queries_of_another_device_or_type_are_refused(
    two_cards: list[tuple[str, int]], queries: torch.Tensor, got: str
) -> None:
    lists = CardInverted(None, Card(torch.device("meta:0"), 16 * MIB), np.ones(30, np.int64))
    with pytest.raises(BankError, match=f"expected float32 queries on meta:0, got {got}"):
        lists.search(queries, 1)


MOVES = ["IVF4,Flat", "IVF4,SQ8", "IVF4,SQ6", "IVF4,SQ4", "IVF4,SQfp16", "IVF4,PQ4", "IVF4,PQ24", "IVF4,PQ48"]
STAYS = [
    "IVF4,SQbf16",
    "IVF4,PQ6",
    "IVF4,PQ96",
    "IVF4,PQ4x4",
    "IVF4,PQ4x4fs",
    "IVF4_HNSW4,Flat",
    "IVF4,PQ4+4",
]


@pytest.mark.parametrize("factory", MOVES)
def test_what_moves_is_moved(factory: str) -> None:
    assert moves_to_card(faiss.index_factory(96, factory))


@pytest.mark.parametrize("factory", STAYS)
def test_what_faiss_would_refuse_stays(factory: str) -> None:
    assert not moves_to_card(faiss.index_factory(96, factory))


def test_an_index_that_probes_more_cells_than_a_card_can_stays() -> None:
    """FAISS looks at this in the copy, though there are four of them."""
    index = faiss.index_factory(96, "IVF4,Flat")
    index.nprobe = 2048
    assert moves_to_card(index)
    index.nprobe = 2049
    assert not moves_to_card(index)


def test_residuals_that_a_card_would_take_otherwise_stay() -> None:
    flat, codes = faiss.index_factory(96, "IVF4,Flat"), faiss.index_factory(96, "IVF4,PQ4")
    flat.by_residual, codes.by_residual = True, False
    assert not moves_to_card(flat)
    assert not moves_to_card(codes)


@pytest.mark.gpu
@pytest.mark.parametrize("factory", [*MOVES, *STAYS])
def test_faiss_agrees_on_what_moves(factory: str) -> None:
    index = faiss.index_factory(96, factory)
    card = card_of(torch.device("cuda", 0), CardSpec())
    with card.turn():
        if factory in MOVES:
            assert faiss_gpu.to_card(card.resources, card.number, index).getDevice() == card.number
        else:
            with pytest.raises(RuntimeError):
                faiss_gpu.to_card(card.resources, card.number, index)


# --- scratch memory: FAISS's allocations, piece by piece, as its sources make them


def tiles(nq: int, nb: int, d: int, k: int, item: int) -> tuple[list[int], int]:
    """Pieces that a brute-force search keeps till its end: runDistance and chooseTileSize for more than 8 GiB."""
    preferred = 1024 if d <= 32 else 512
    rows, columns = min(preferred, nq), min((1 << 30) // (2 * item) // preferred, nb)
    count = -(-nb // columns)
    distances, nearest = rows * columns * 4, rows * count * k
    return [4 * nq, distances, distances, 4 * nearest, 4 * nearest, 8 * nearest, 8 * nearest], rows


def kept(pieces: list[int]) -> int:
    """Bytes of scratch memory for pieces that live at the same time; each is rounded up (allocMemory)."""
    return 16 + sum(-(-piece // 256) * 256 for piece in pieces)


def flat_takes(nq: int, nb: int, d: int, k: int, item: int) -> int:
    rounded = [2 * nq * d] if item == 2 else []
    return kept(rounded + tiles(nq, nb, d, k, item)[0])


def inverted_takes(nq: int, cells: int, d: int, k: int, nprobe: int) -> int:
    """The coarse search, and after it the scan, both beside what was probed (IVFFlat::search)."""
    probed = [nq * nprobe * 4, nq * nprobe * 8, nq * nprobe * d * 4]
    coarse = tiles(nq, cells, d, nprobe, 4)[0]
    return max(kept(probed + coarse), kept([*probed, nq * nprobe * k * 4, nq * nprobe * k * 8]))


MANY = (1 << 20) - 1
BYTES = st.sampled_from([16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB, 1536 * MIB])
WIDTHS, KS = st.sampled_from([8, 32, 33, 152, 1792]), st.integers(1, 64)


@given(temporary=BYTES, nb=st.integers(1, 20_000_000), d=WIDTHS, k=KS, halves=st.booleans())
def test_a_brute_force_search_stays_in_the_scratch_memory(
    temporary: int, nb: int, d: int, k: int, halves: bool
) -> None:
    item = 2 if halves else 4
    nq = flat_queries(temporary, nb, d, k, half_floats=halves)
    assert nq == 1 or flat_takes(nq, nb, d, k, item) <= temporary
    assert nq >= MANY or flat_takes(nq + 1, nb, d, k, item) > temporary - 2 * MIB  # it makes use of it


@given(temporary=BYTES, cells=st.integers(1, 8192), d=WIDTHS, k=KS, nprobe=st.integers(1, 2048))
def test_a_search_through_lists_stays_in_the_scratch_memory(
    temporary: int, cells: int, d: int, k: int, nprobe: int
) -> None:
    nprobe = min(nprobe, cells)
    nq = inverted_queries(temporary, cells, d, k, nprobe)
    assert nq == 1 or inverted_takes(nq, cells, d, k, nprobe) <= temporary
    assert nq >= MANY or inverted_takes(nq + 1, cells, d, k, nprobe) > temporary - 2 * MIB
