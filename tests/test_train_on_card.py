"""Training on a card: the host gives orders and never waits, and the figures are the CPU's.

The bodies are written once. On the fake card they run everywhere; on a real one wherever torch sees it, where
CUDA's own watch for waits takes the place of the fake one's refusal.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from fake_card import FakeCard, fake_card
from made_up import Workplace
from numpy.typing import NDArray
from test_trainer import CHANNELS, pyramid
from torch import Tensor

from cfa_index.bank import MemoryBank
from cfa_index.bundle import ModelBundle
from cfa_index.descriptor import PatchDescriptor, initial_descriptor
from cfa_index.errors import BankError
from cfa_index.specs import DescriptorSpec, TrainSpec
from cfa_index.store import JoinedStore
from cfa_index.transfers import Uploads
from cfa_index.workflows.checkpoint import read_checkpoint, write_checkpoint
from cfa_index.workflows.extract import inspected_mask
from cfa_index.workflows.opening import open_store
from cfa_index.workflows.train import TrainReport, train
from cfa_index.workflows.train_batches import TrainBatch, train_batches
from cfa_index.workflows.trainer import EpochLog, Trainer, median_radius, restore, snapshot, train_epoch

CPU = torch.device("cpu")
SPEC = TrainSpec(attract=3, repel=2, learning_rate=1e-2)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device to train on.

    Attributes:
        refusing: a context in which nothing may wait for it.
        fake: what happened on the fake card; None for a real one.
    """

    device: torch.device
    refusing: Callable[[], AbstractContextManager[None]]
    fake: FakeCard | None


@contextmanager
def _refused_by_cuda() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "cuda":
        yield Place(device=torch.device("cuda", 0), refusing=_refused_by_cuda, fake=None)
        return
    with fake_card() as fake:
        yield Place(device=torch.device("meta", 0), refusing=fake.refusing, fake=fake)


def trainer_on(device: torch.device, spec: TrainSpec = SPEC, radius: float = 3.5) -> Trainer:
    phi = initial_descriptor(DescriptorSpec(init="he", standardise=False), CHANNELS, None, seed=1)
    vectors = np.random.default_rng(2).normal(size=(20, 11)).astype(np.float32)
    return Trainer(phi.to(device), MemoryBank(vectors, device), spec, radius)


def batch_on(device: torch.device, number: int, inspected: Sequence[int] | None = None) -> TrainBatch:
    """Two views in half precision, as a store gives them."""
    return TrainBatch(
        rows=[0, 1],
        levels=[level.half().to(device) for level in pyramid(number)],
        inspected=None if inspected is None else torch.tensor(inspected).to(device),
    )


def close(phi: PatchDescriptor, expected: PatchDescriptor) -> bool:
    """Within what another order of float32's sums makes of a few updates."""
    return all(
        torch.allclose(
            getattr(phi, name).detach().cpu(), getattr(expected, name).detach(), rtol=1e-4, atol=1e-5
        )
        for name in ("weight", "bias")
    )


SOME = [0, 1, 5, 30, 36, 40, 71]


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[list[list[float]], PatchDescriptor]]:
    """Four steps on the CPU: figures and phi."""
    found = {}
    for name, (spec, inspected) in CASES.items():
        trainer = trainer_on(CPU, spec)
        figures = [trainer.step(*_of(batch_on(CPU, number, inspected))).tolist() for number in range(4)]
        found[name] = figures, trainer.descriptor
    return found


CASES: dict[str, tuple[TrainSpec, list[int] | None]] = {
    "all patches": (SPEC, None),
    "some patches": (SPEC, SOME),
    "published": (TrainSpec(attract=2, repel=3, learning_rate=1e-2, loss_scale=1000.0), None),
    "no repelling, r fixed": (TrainSpec(repel=0, learn_radius=False, learning_rate=1e-2), SOME),
}


def _of(batch: TrainBatch) -> tuple[list[Tensor], Tensor | None]:
    return batch.levels, batch.inspected


@pytest.mark.parametrize("case", CASES)
def test_steps_on_a_card_are_the_cpu_s_and_wait_for_nothing(
    expected: dict[str, tuple[list[list[float]], PatchDescriptor]], card: Place, case: str
) -> None:
    spec, inspected = CASES[case]
    trainer = trainer_on(card.device, spec)
    batches = [batch_on(card.device, number, inspected) for number in range(4)]
    if card.fake is not None:
        card.fake.to_card.clear()
    with card.refusing():
        figures = [trainer.step(*_of(batch)) for batch in batches]
    assert {one.device for one in figures} == {card.device}
    assert {tuple(one.shape) for one in figures} == {(4,)}
    if card.fake is not None:
        assert card.fake.to_card == []
        assert card.fake.to_host == []
    of_cpu, phi = expected[case]
    assert np.allclose([one.cpu().tolist() for one in figures], of_cpu, rtol=1e-4)
    assert close(trainer.descriptor, phi)


def test_an_epoch_brings_four_numbers_a_step_to_the_host_one_step_late(
    card: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    real = Trainer.step

    def step(self: Trainer, *args: Any) -> Tensor:
        happened.append("step")
        with card.refusing():
            return real(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    on_cpu, told = _epoch(CPU, happened)
    assert happened == ["step", "told"] * 4
    happened.clear()
    if card.fake is not None:
        card.fake.to_host.clear()
    on_card, late = _epoch(card.device, happened)
    assert happened == ["step", *["step", "told"] * 3, "told"]
    assert [one["images"] for one in late] == [one["images"] for one in told] == [2] * 4
    for ours, theirs in zip(late, told, strict=True):
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4)
    for name in ("attraction", "repulsion", "radius", "neighbor_distance"):
        assert getattr(on_card, name) == pytest.approx(getattr(on_cpu, name), rel=1e-4)
    if card.fake is not None:
        assert card.fake.to_host == [(4,)] * 4 + [()]  # and r at the end


def _epoch(device: torch.device, happened: list[str]) -> tuple[EpochLog, list[dict[str, float]]]:
    told: list[dict[str, float]] = []

    def advance(steps: int, **figures: float) -> None:
        assert steps == 1
        happened.append("told")
        told.append(figures)

    batches = (batch_on(device, number) for number in range(4))
    return train_epoch(trainer_on(device), batches, epoch=1, advance=advance), told


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_patch_that_is_not_finite_is_the_cpu_s_error(card: Place, bad: float) -> None:
    def batches(device: torch.device) -> Iterator[TrainBatch]:
        for number in range(5):
            levels = pyramid(number)
            if number == 2:
                levels[0][1, 0, 3, 3] = bad
            yield TrainBatch(rows=[0, 1], levels=[level.to(device) for level in levels], inspected=None)

    messages: list[str] = []
    told: list[list[int]] = []

    def advance(steps: int, **figures: float) -> None:
        told[-1].append(steps)

    for device in (CPU, card.device):
        told.append([])
        with pytest.raises(BankError, match="finite queries, got a NaN or infinite patch feature") as raised:
            train_epoch(trainer_on(device), batches(device), epoch=1, advance=advance)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert told == [[1, 1], [1, 1]]  # what was good is told; the error comes in place of the third


@pytest.mark.filterwarnings("ignore:.*to a meta parameter.*a no-op:UserWarning")  # not on the fake card
@pytest.mark.parametrize("to_card", [True, False])
def test_a_checkpoint_goes_on_on_the_other_device(card: Place, tmp_path: Path, to_card: bool) -> None:
    first, second = (CPU, card.device) if to_card else (card.device, CPU)
    unbroken, begun = trainer_on(CPU), trainer_on(first)
    for number in range(4):
        unbroken.step(*_of(batch_on(CPU, number)))
    for number in range(2):
        begun.step(*_of(batch_on(first, number)))
    write_checkpoint(tmp_path, {}, snapshot(begun, []))
    found = read_checkpoint(tmp_path, {})
    assert found is not None
    for state in found.optimizer.values():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert {(one.dtype, one.device) for one in state.values()} == {(torch.float32, CPU)}
        assert state["step"].item() == 2
    resumed = trainer_on(second)
    assert restore(resumed, found) == []
    for number in range(2, 4):
        resumed.step(*_of(batch_on(second, number)))
    assert close(resumed.descriptor, unbroken.descriptor)
    assert resumed.loss.radius.detach().cpu().item() == pytest.approx(unbroken.loss.radius.item(), rel=1e-4)


# ------------------------------------------------------------------------------------- from a store


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A built category whose images are letterboxed; every second one has padding."""
    place = made_up.workplace(tmp_path_factory.mktemp("padded"), train=8, test=1)
    for number in range(0, 8, 2):
        made_up.write_image(
            place.data / "weave" / "train" / "good" / f"{number:03d}.png",
            made_up.texture(number, width=64, height=40),
        )
    outcome = place.build("--geometry", "letterbox")
    assert outcome.code == 0, outcome
    return place


def test_batches_from_a_store_know_by_number_what_counts(padded: Workplace) -> None:
    bundle = ModelBundle.load(padded.models / "weave")
    store = open_store(bundle.manifest, padded.features)
    made: list[Tensor] = []

    class Staged(Uploads):
        """Keeps what it gave out."""

        def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            made.append(super().staging(shape, dtype))
            return made[-1]

    parts = [[1, 3], [0, 1, 2], [7]]
    batches = list(train_batches(store, parts, Staged(CPU)))
    assert [batch.rows for batch in batches] == parts
    assert [batch.inspected is None for batch in batches] == [True, False, True]
    levels = [level for batch in batches for level in batch.levels]
    assert [level.data_ptr() for level in levels] == [
        one.data_ptr() for one in made
    ]  # read where it is sent from
    for batch in batches:
        for level, plain in zip(batch.levels, store.read(batch.rows), strict=True):
            assert torch.equal(level, plain)
            assert level.dtype == torch.float16
            assert level.is_contiguous(memory_format=torch.channels_last)
    twice = JoinedStore([store, store]).read([1, 9], Staged(CPU).staging)
    assert all(torch.equal(level, plain) for level, plain in zip(twice, store.read([1, 1]), strict=True))
    counted = batches[1].inspected
    assert counted is not None
    assert counted.dtype == torch.int64
    every = torch.arange(3 * 256).view(3, 256)
    assert torch.equal(counted, every[inspected_mask(store, parts[1])])


def test_the_median_radius_is_the_cpu_s_and_one_number_comes_back(padded: Workplace, card: Place) -> None:
    bundle = ModelBundle.load(padded.models / "weave")
    store = open_store(bundle.manifest, padded.features)
    rows, phi, spec = store.good_rows, bundle.initial_descriptor, TrainSpec(attract=3)
    radius = median_radius(store, rows, phi, bundle.bank, spec)
    patches = [phi(store.read([row]))[inspected_mask(store, [row])].detach().double() for row in rows]
    distances = torch.cdist(torch.cat(patches), torch.from_numpy(bundle.bank.vectors).double())
    assert radius == pytest.approx(distances.sort(dim=1).values[:, 2].quantile(0.5).item(), rel=1e-2)
    on_card = MemoryBank(bundle.bank.vectors, card.device)
    if card.fake is not None:
        card.fake.to_host.clear()
    assert median_radius(store, rows, phi.to(card.device), on_card, spec) == pytest.approx(radius, rel=1e-4)
    if card.fake is not None:
        assert card.fake.to_host == [()]


def trained_on(
    device: str, padded: Workplace, models: Path, *, batch_size: int = 3
) -> tuple[TrainReport, ModelBundle]:
    """Two epochs from the built model, and the result as a CPU loads it.

    With `median` one patch lies on the sphere of the first step to the last bit: then rounding decides whether it
    pulls, and Adam's first steps are as long for a small gradient as for a large one.
    """
    if not models.exists():
        shutil.copytree(padded.models, models)
    spec = TrainSpec(epochs=2, batch_size=batch_size, learning_rate=1e-3, radius=0.5)
    report = train(models, "weave", spec, features_dir=padded.features, device=device)
    return report, ModelBundle.load(models / "weave")


def assert_same(ours: tuple[TrainReport, ModelBundle], theirs: tuple[TrainReport, ModelBundle]) -> None:
    """Within rounding: the log, phi, what the scores are judged by."""
    for one, other in zip(_numbers(*ours), _numbers(*theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def _numbers(report: TrainReport, bundle: ModelBundle) -> Iterator[NDArray[Any]]:
    assert bundle.scorer.baseline is not None
    yield np.array([(row.attraction, row.repulsion, row.radius, row.neighbor_distance) for row in report.log])
    yield bundle.descriptor.weight.detach().numpy()
    yield bundle.descriptor.bias.detach().numpy()
    yield bundle.scorer.baseline.numpy()
    yield np.array(bundle.manifest.held_out.scores)


def test_a_whole_training_on_a_card_is_the_cpu_s(padded: Workplace, card: Place, tmp_path: Path) -> None:
    on_cpu = trained_on("cpu", padded, tmp_path / "cpu")
    copies = []
    for batch_size in (3, 7):
        if card.fake is not None:
            card.fake.to_host.clear()
        on_card = trained_on("cuda", padded, tmp_path / f"card-{batch_size}", batch_size=batch_size)
        if batch_size == 3:
            assert_same(on_card, on_cpu)
        if card.fake is not None:
            copies.append(Counter(card.fake.to_host))
    if card.fake is not None:
        # Seven images, two epochs: three steps each, then one. Everything else is of an epoch or of the end.
        assert copies[0] - copies[1] == Counter({(4,): 4})
        assert not copies[1] - copies[0]


@pytest.mark.filterwarnings("ignore:.*to a meta parameter.*a no-op:UserWarning")  # not on the fake card
def test_a_training_killed_on_the_cpu_goes_on_on_a_card(
    padded: Workplace, card: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = trained_on("cpu", padded, tmp_path / "unbroken")

    def killing(*arguments: Any) -> None:
        write_checkpoint(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cfa_index.workflows.train.write_checkpoint", killing)
        with pytest.raises(KeyboardInterrupt):
            trained_on("cpu", padded, tmp_path / "broken")
    steps: list[int] = []
    real = Trainer.step

    def counted(self: Trainer, *arguments: Any) -> Tensor:
        steps.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "step", counted)
    assert_same(trained_on("cuda", padded, tmp_path / "broken"), unbroken)
    assert len(steps) == 3  # the second epoch only
