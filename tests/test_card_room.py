"""A model, its batches and its training on cards that are too small, and that run out all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_card import fake_card
from made_up import QUICK, Workplace, built_workplace, cfa, tree

from cfa_index import MemoryBank, ModelBundle, forward_bytes
from cfa_index.errors import CardMemoryError
from cfa_index.footprint import memories_footprint

MIB = 1 << 20
OUT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A built category that no test of this file changes."""
    return built_workplace(tmp_path_factory.mktemp("place"))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set what the card has free from now on; a forward pass takes 64 bytes a pixel."""
    for module in ("bundle.model", "workflows.extract"):  # meta is the fake card's own
        monkeypatch.setattr(
            f"cfa_index.{module}.forward_bytes", lambda _, images, size_px: 64 * images * size_px**2
        )

    def set_free(free_bytes: int) -> None:
        def memory_of(device: torch.device) -> tuple[int, int] | None:
            return None if device.type == "cpu" else (free_bytes, 16 << 30)

        for module in ("card_memory", "bundle.model", "workflows.extract"):
            monkeypatch.setattr(f"cfa_index.{module}.memory_of", memory_of)

    return set_free


def test_weights_that_do_not_fit_are_not_loaded(place: Workplace, free: Callable[[int], None]) -> None:
    free(MIB)
    with (
        fake_card(),
        pytest.raises(CardMemoryError, match=r"weights \d+ MiB\), got 1 MiB free; .*--backbone"),
    ):
        ModelBundle.load(place.models / "weave", device="cuda")


def test_what_a_batch_takes_follows_from_the_model(place: Workplace, free: Callable[[int], None]) -> None:
    bundle = ModelBundle.load(place.models / "weave")
    footprint = bundle.batch_footprint(4)
    vectors = 4 * 256 * bundle.descriptor.width * 4  # bytes
    assert [part.size_bytes for part in footprint.parts] == [vectors, 4 * 256 * 2 * 12, 2 * vectors]
    assert bundle.batch_footprint(8).total == 2 * footprint.total
    assert footprint.total > forward_bytes(bundle.backbone, 4, 64)
    free(0)
    bundle.require_room(1 << 20)  # the CPU's memory is another matter


@pytest.mark.parametrize("command", ["score", "evaluate", "train", "build"])
def test_a_step_that_does_not_fit_is_not_begun(
    command: str, place: Workplace, tmp_path: Path, free: Callable[[int], None]
) -> None:
    before = tree(place.root)
    size = ("--batch-size", "4096")
    commands: dict[str, list[object]] = {
        "score": ["score", place.data / "weave" / "test", *place.model, "-o", tmp_path / "out", *size],
        "evaluate": ["evaluate", "--data-root", place.data, *place.model, *size],
        "train": ["train", *place.stores, "--epochs", "1", *size],
        "build": ["build", *place.everything, *QUICK, "--size", "1024"],
    }
    free(300 * MIB)
    with fake_card():
        line = cfa(*commands[command], "-c", "weave", "--device", "cuda", "--card-memory", "16MiB").error_line
    assert "room on meta:0 for " in line
    assert "300 MiB free" in line
    assert ("--batch-size" in line) == (command != "build")
    assert tree(place.root) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("cfa_index.backbones.network.F.avg_pool2d", "enough memory for the network on 4 images on meta:0"),
        ("cfa_index.bank.memory.exact_sq_distances", "enough memory for scoring 4 images on meta:0"),
    ],
)
def test_a_batch_that_runs_out_is_one_line(
    step: str, says: str, place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(OUT)

    monkeypatch.setattr(step, full)
    command = ("score", place.data / "weave" / "test", *place.model, "-o", tmp_path / "out")
    with fake_card():
        outcome = cfa(*command, "-c", "weave", "--device", "cuda", "--batch-size", "4", "--workers", "0")
    assert says in outcome.error_line
    assert "2.00 GiB asked for" in outcome.error_line


def test_a_training_step_that_runs_out_is_one_line(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(OUT)

    monkeypatch.setattr("cfa_index.workflows.trainer.neighbor_sq_distances", full)
    with fake_card():
        line = cfa("train", "-c", "weave", *place.stores, "--epochs", "1", "--device", "cuda").error_line
    assert "enough memory for training on 4 images on meta:0" in line


@pytest.mark.gpu
def test_a_bank_takes_of_a_card_what_is_estimated() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda", 0)
    vectors = torch.rand(100_000, 64).numpy()
    bank = MemoryBank(vectors, device)
    held = torch.cuda.memory_allocated(device)
    del bank
    taken = held - torch.cuda.memory_allocated(device)
    assert abs(taken - memories_footprint(100_000, 64).total) < MIB
