"""A card that is too small, or runs out: one line, whoever noticed it."""

from __future__ import annotations

import pickle

import pytest
import torch

from cfa_index import card_memory as module
from cfa_index.card_memory import card_memory, has_run_out, make_room, memory_of, require_room
from cfa_index.errors import CardMemoryError, CfaIndexError, DeviceError
from cfa_index.footprint import SMALLER_BANK, SMALLER_BATCH, Footprint

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
MIB, GIB = 1 << 20, 1 << 30
NEEDED = Footprint.of(SMALLER_BANK, memories=4 * GIB) + Footprint.of(SMALLER_BATCH, pixels=100 * MIB)

TORCH = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 11.38 MiB "
    "is free. Process 7 has 15.76 GiB memory in use."
)
FAISS = (
    "Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory(const faiss::gpu::AllocRequest&) at "
    "StandardGpuResources.cpp:533: Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail type "
    "FlatData dev 0 space Device stream 0x55 size 4294967296 bytes (cudaMalloc error out of memory [2])\n"
)
PINNED = (
    "Error: 'err == cudaSuccess' failed: failed to cudaHostAlloc 268435456 bytes for CPU <-> GPU async copy buffer "
    "(error 2 out of memory)"
)


@pytest.fixture
def small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_of", lambda device: (3 * GIB, 16 * GIB) if device == CARD else None)
    monkeypatch.setattr(module, "release_cached", lambda _: None)


def test_what_fits_exactly_is_let_through_and_a_byte_less_is_not() -> None:
    require_room(NEEDED, NEEDED.total, CARD)
    with pytest.raises(CardMemoryError) as caught:
        require_room(NEEDED, NEEDED.total - 1, CARD)
    assert str(caught.value) == (
        "expected room on cuda:0 for 4.1 GiB (memories 4.0 GiB, pixels 100 MiB), got 4.1 GiB free; build with a "
        "smaller --bank-size or --gamma-d, give a smaller --batch-size, or use --device cpu"
    )


@pytest.mark.usefixtures("small_card")
def test_room_is_made_on_a_card_and_never_asked_of_the_cpu() -> None:
    with pytest.raises(CardMemoryError, match=r"3\.0 GiB free"):
        make_room(NEEDED, CARD)
    make_room(NEEDED, CPU)


def test_the_cpu_has_no_card_s_memory() -> None:
    assert memory_of(CPU) is None
    assert memory_of(torch.device("meta")) is None
    make_room(NEEDED, torch.device("meta"))


def test_a_driver_that_fails_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> tuple[int, int]:
        raise RuntimeError("CUDA driver")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert memory_of(CARD) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 2))
    assert memory_of(CARD) == (1, 2)


@pytest.mark.usefixtures("small_card")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError(TORCH), "none left in cuda:0: 20.00 GiB asked for, 3.0 GiB free of 16 GiB"),
        (RuntimeError(FAISS), "none left in cuda:0: 4.0 GiB asked for, 3.0 GiB free of 16 GiB"),
        (RuntimeError(PINNED), "none left in the host's pinned memory: 256 MiB asked for"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "an unknown amount asked for",
        ),
        (RuntimeError("CUDA error: out of memory"), "an unknown amount asked for"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 bytes. GPU 0"),
            "512 bytes asked for",
        ),
    ],
)
def test_memory_that_runs_out_is_one_line(error: Exception, words: str) -> None:
    with (
        pytest.raises(CardMemoryError) as caught,
        card_memory(CARD, "scoring 8 images", lower=SMALLER_BATCH),
    ):
        raise error
    line = str(caught.value)
    assert line.startswith("expected enough memory for scoring 8 images on cuda:0, got ")
    assert words in line
    assert line.endswith("give a smaller --batch-size, end other programs on the card, or use --device cpu")
    assert caught.value.__cause__ is error


@pytest.mark.usefixtures("small_card")
def test_an_error_that_was_said_inside_is_not_said_again() -> None:
    with (
        pytest.raises(CardMemoryError, match="the index"),
        card_memory(CARD, "the model", lower=""),
        card_memory(CARD, "the index", lower=""),
    ):
        raise torch.OutOfMemoryError(TORCH)


def test_other_errors_and_those_of_the_cpu_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes") as other, card_memory(CARD, "x", lower=""):
        raise RuntimeError("shapes do not match")
    assert not isinstance(other.value, CfaIndexError)
    with pytest.raises(RuntimeError) as host, card_memory(CPU, "x", lower=""):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: out of memory")
    assert not isinstance(host.value, CfaIndexError)
    with pytest.raises(KeyError), card_memory(CARD, "x", lower=""):
        raise KeyError("out of memory")


def test_a_caller_catches_it_as_what_it_is() -> None:
    error = CardMemoryError(expected="a", got="b", remedy="c")
    assert isinstance(error, DeviceError)
    assert isinstance(error, MemoryError)
    assert isinstance(error, RuntimeError)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (CardMemoryError, str(error))
    assert has_run_out(torch.OutOfMemoryError(""))


@pytest.mark.gpu
def test_a_card_says_what_is_free_and_what_was_asked() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    memory = memory_of(CARD)
    assert memory is not None
    assert 0 < memory[0] <= memory[1]
    with pytest.raises(CardMemoryError, match="asked for"), card_memory(CARD, "too much", lower="less"):
        torch.empty(2 * memory[1], dtype=torch.uint8, device=CARD)
