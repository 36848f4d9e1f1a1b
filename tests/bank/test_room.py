"""A bank is refused before it is put on a card that is too small, and in one line where the card runs out all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from fake_card import FakeCard, fake_card
from vectors import clustered

from cfa_index import card_memory
from cfa_index.bank import (
    MemoryBank,
    Recipe,
    SearchIndex,
    build_faiss,
    card as bank_card,
    choice,
    cuvs,
    faiss_gpu,
    flat,
    make_index,
)
from cfa_index.bank.card import card_of
from cfa_index.bank.state import IndexState
from cfa_index.errors import CardMemoryError
from cfa_index.footprint import half_footprint, ivf_footprint, memories_footprint
from cfa_index.specs import CardSpec, IndexSpec, Storage

CARD = torch.device("meta:0")
COUNT, D = 600, 16
XB = clustered(COUNT, D)
MEMORIES = memories_footprint(COUNT, D).total
FIRST_USE = 400 << 20
"""FAISS's scratch memory and what it makes at its first call."""
TEXT = "alloc fail type IVFLists dev 0 space Device stream 0 size 4096 bytes (cudaMalloc error out of memory [2])"


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with fake_card() as card:
        yield card


@pytest.fixture
def free(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set what the card has free from now on."""
    del card

    def set_free(free_bytes: int) -> None:
        monkeypatch.setattr(card_memory, "memory_of", lambda _: (free_bytes, 16 << 30))

    return set_free


def index_of(factory: str) -> SearchIndex:
    built = build_faiss(XB, factory, seed=0)
    state = IndexState(factory=factory, parameters={}, k=1, queries=0, resident_bytes=0, latency_ms=0.0)
    return SearchIndex(built, state)


def test_memories_that_do_not_fit_are_not_put_there(card: FakeCard, free: Callable[[int], None]) -> None:
    free(FIRST_USE)
    card_of(CARD, CardSpec())
    free(MEMORIES - 1)
    with pytest.raises(
        CardMemoryError, match=r"memories 38 KiB, norms 2 KiB\), got 40 KiB free; .*--bank-size"
    ):
        MemoryBank(XB, CARD)
    assert card.to_card == []


def test_the_scratch_memory_is_looked_at_before_faiss_takes_it(
    card: FakeCard, free: Callable[[int], None]
) -> None:
    free(100 << 20)
    with pytest.raises(CardMemoryError, match=r"temporary memory 256 MiB.*--card-memory"):
        MemoryBank(XB, CARD)
    assert card.faiss.made == []
    MemoryBank(XB, CARD, card=CardSpec(temporary_bytes=16 << 20))


def test_a_small_card_has_the_scratch_memory_that_faiss_grants(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_card, "memory_of", lambda _: (8 << 30, 8 << 30))
    MemoryBank(XB, CARD, card=CardSpec(temporary_bytes=3 << 29))
    MemoryBank(XB, CARD, card=CardSpec(temporary_bytes=5 << 28))
    assert [one.temporary_bytes for one in card.faiss.made] == [1 << 30]


@pytest.mark.parametrize(
    ("factory", "storage", "part"),
    [
        (None, "fp16", "half floats"),
        ("SQfp16", "fp32", "half floats"),
        ("PCA8,Flat", "fp32", "memories"),
        ("IVF4,Flat", "fp32", "index lists"),
        ("IVF4,Flat", "fp16", "index lists"),
        ("IVF4,SQ8", "fp32", "index lists"),
    ],
)
def test_what_lies_beside_the_memories_is_looked_at(
    free: Callable[[int], None],
    factory: str | None,
    storage: Storage,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = None if factory is None else index_of(factory)
    halves = half_footprint(COUNT, D).total
    needed = {"half floats": halves, "memories": memories_footprint(COUNT, 8).total}.get(part)
    if needed is None:
        assert index is not None
        sizes = [index.faiss_index.invlists.list_size(cell) for cell in range(4)]
        bits = 8 if factory == "IVF4,SQ8" else 16 if storage == "fp16" else 32
        needed = ivf_footprint(sizes, D, code_bits=bits).total
    spec = CardSpec(storage=storage)
    free(FIRST_USE)
    bank = MemoryBank(XB, CARD)  # FAISS has its scratch memory from here on
    made: Callable[[], object] = (
        partial(MemoryBank, XB, CARD, card=spec)
        if index is None
        else partial(replaced(bank, spec).with_index, index)
    )
    free(max(needed, MEMORIES))
    made()
    if index is None:  # the memories are looked at first, and are larger
        monkeypatch.setattr(flat, "make_room", lambda *_: None)
    free(needed - 1)
    with pytest.raises(CardMemoryError, match=part):
        made()


def replaced(bank: MemoryBank, spec: CardSpec) -> MemoryBank:
    """The bank under another setting of its card."""
    other = copy.copy(bank)
    other.card = spec
    return other


@pytest.mark.parametrize(("factory", "step"), [("SQfp16", "half_flat"), ("IVF4,Flat", "to_card")])
@pytest.mark.usefixtures("card")
def test_a_card_that_runs_out_all_the_same_is_one_line(
    factory: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(TEXT)

    monkeypatch.setattr(faiss_gpu, step, full)
    index = index_of(factory)
    with pytest.raises(
        CardMemoryError, match=r"enough memory for the index on meta:0, got none left .*: 4 KiB"
    ):
        MemoryBank(XB, CARD, index)
    bank = MemoryBank(XB, CARD)
    with pytest.raises(CardMemoryError, match=r"enough memory for the index on meta:0.*--index flat"):
        bank.with_index(index)


@pytest.mark.usefixtures("card")
def test_halves_that_an_index_replaces_do_not_stay_on_the_card() -> None:
    bank = MemoryBank(XB, CARD, card=CardSpec(storage="fp16"))
    assert bank._half is not None
    assert bank.with_index(index_of("IVF4,Flat"))._half is None
    assert bank.with_index(index_of("HNSW4,Flat"))._half is bank._half  # a card has no such index


def test_scratch_memory_that_cannot_grow_is_what_it_was(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS gives the old one back first, and would search with none."""
    MemoryBank(XB, CARD, card=CardSpec(temporary_bytes=32 << 20))
    asked: list[int] = []

    def full(temporary_bytes: int) -> None:
        asked.append(temporary_bytes)
        if temporary_bytes > 32 << 20:
            raise RuntimeError(TEXT)

    monkeypatch.setattr(card.faiss.made[0], "setTempMemory", full)
    with pytest.raises(CardMemoryError, match="enough memory for the bank"):
        MemoryBank(XB, CARD, card=CardSpec(temporary_bytes=64 << 20))
    assert asked == [64 << 20, 32 << 20]
    assert card_of(CARD, CardSpec(temporary_bytes=32 << 20)).temporary_bytes == 32 << 20


@pytest.mark.parametrize(("factory", "step"), [("CAGRA32", "build_lists"), ("IVF4,Flat", "search")])
@pytest.mark.usefixtures("card")
def test_a_card_that_runs_out_while_an_index_is_made_or_tuned_is_one_line(
    factory: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(TEXT)

    monkeypatch.setattr(cuvs if step == "build_lists" else faiss_gpu, step, full)
    flat = MemoryBank(XB, CARD)
    with pytest.raises(CardMemoryError, match=f"enough memory for the index {factory} on meta:0"):
        make_index(
            XB, IndexSpec(factory=factory), XB[:100], k=1, patches_per_image=32, seed=0, flat=flat
        )  # fmt: skip


def test_an_index_that_a_card_has_no_room_for_falls_out_of_the_choice(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    del card

    def full(*_: object) -> None:
        raise RuntimeError(TEXT)

    monkeypatch.setattr(faiss_gpu, "half_flat", full)
    recipes = [Recipe(name=name, factory=name) for name in ("Flat", "SQfp16")]
    monkeypatch.setattr(choice, "recipes_of", lambda *_, **__: recipes)
    found = make_index(
        XB, IndexSpec(factory="auto"), clustered(100, D, seed=2), k=1, patches_per_image=32, seed=0,
        flat=MemoryBank(XB, CARD),
    )  # fmt: skip
    assert [trial.verdict for trial in found.trials] == [
        "chosen",
        "none left in meta:0: 4 KiB asked for",
    ]
