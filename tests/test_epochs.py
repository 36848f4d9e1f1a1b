"""phi after each epoch: kept whatever happens to the training, and only when asked for."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from made_up import Workplace, cfa

from cfa_index import ModelBundle, PatchDescriptor
from cfa_index.bundle import set_current
from cfa_index.errors import StoreError
from cfa_index.workflows import train
from cfa_index.workflows.epochs import are_kept, keep_epoch, kept_epochs

EPOCHS = 3


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A category whose generation 0002 was trained in one go, its epochs kept."""
    place = made_up.built_workplace(tmp_path_factory.mktemp("kept"), train=10, test=1)
    outcome = cfa("train", "-c", "weave", *place.stores, "--epochs", str(EPOCHS), "--keep-epochs")
    assert outcome.code == 0, outcome
    return place


def built_copy(place: Workplace, root: Path) -> tuple[Workplace, tuple[Any, ...]]:
    """The model as it was before the training, and the command that trains it; the store is shared."""
    generation = Path("models", "weave", "generations", "0001")
    shutil.copytree(place.root / generation, root / generation)
    set_current(root / "models" / "weave", "0001")
    copy = Workplace(root=root)
    command = ("train", "-c", "weave", *copy.model, "--features-dir", place.features)
    return copy, (*command, "--epochs", str(EPOCHS))


def epochs_file(place: Workplace) -> bytes:
    return (place.models / "weave" / "generations" / "0002" / "epochs.safetensors").read_bytes()


def test_the_last_epoch_is_the_model_and_the_others_lead_there(kept: Workplace) -> None:
    bundle = ModelBundle.load(kept.models / "weave")
    epochs = bundle.epoch_descriptors()
    assert len(epochs) == EPOCHS
    for name in ("weight", "bias", "mean", "std"):
        assert torch.equal(getattr(epochs[-1], name), getattr(bundle.descriptor, name)), name
    weights = [bundle.initial_descriptor.weight, *(epoch.weight for epoch in epochs)]
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(weights))
    assert not (kept.models / "weave" / "checkpoint").exists()


def test_nothing_is_kept_unless_asked_for(kept: Workplace, tmp_path: Path) -> None:
    place, command = built_copy(kept, tmp_path)
    assert cfa(*command).code == 0
    found = ModelBundle.load(place.models / "weave")
    assert "epochs.safetensors" not in found.manifest.files
    assert torch.equal(found.descriptor.weight, ModelBundle.load(kept.models / "weave").descriptor.weight)


def test_no_epoch_at_all_keeps_nothing(kept: Workplace, tmp_path: Path) -> None:
    place, command = built_copy(kept, tmp_path)
    assert cfa(*command[:-1], "0", "--keep-epochs").code == 0
    assert "epochs.safetensors" not in ModelBundle.load(place.models / "weave").manifest.files


@pytest.mark.parametrize("name", ["keep_epoch", "write_checkpoint", "score_held_out", "write_generation"])
def test_a_broken_training_goes_on_to_the_same_epochs(
    kept: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Broken before its second epoch is kept, before that is in the checkpoint, and after the last one."""
    place, command = built_copy(kept, tmp_path)
    real, calls = getattr(train, name), []

    def breaking(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (2 if name in ("keep_epoch", "write_checkpoint") else 1):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(train, name, breaking)
        assert cfa(*command, "--keep-epochs").code == 130
    resumed = cfa(*command, "--keep-epochs")
    assert resumed.code == 0, resumed
    if name in ("keep_epoch", "write_checkpoint"):
        assert "training: 4 steps" in resumed.err  # 2 of 3 epochs, 8 images in batches of 4
    assert epochs_file(place) == epochs_file(kept)
    assert not made_up.leftovers(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut", "another training"])
def test_a_checkpoint_without_its_epochs_is_not_taken(
    kept: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    place, command = built_copy(kept, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(train, "score_held_out", interrupt)
        assert cfa(*command, "--keep-epochs").code == 130
    file = place.models / "weave" / "checkpoint" / "epoch-0002.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        phi = ModelBundle.load(place.models / "weave").descriptor
        keep_epoch(file.parent, {"train": "another"}, 2, phi)
    resumed = cfa(*command, "--keep-epochs")
    assert resumed.code == 0, resumed
    assert "training: 6 steps" in resumed.err  # from the start
    assert epochs_file(place) == epochs_file(kept)


def test_a_checkpoint_that_kept_nothing_is_not_taken_by_one_that_keeps(
    kept: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, command = built_copy(kept, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(train, "score_held_out", interrupt)
        assert cfa(*command).code == 130
    assert cfa(*command, "--keep-epochs").code == 0
    assert epochs_file(place) == epochs_file(kept)


def test_kept_epochs_are_checked_when_they_are_collected(kept: Workplace, tmp_path: Path) -> None:
    identity = {"train": "this"}
    phi: PatchDescriptor = ModelBundle.load(kept.models / "weave").descriptor
    for epoch in (1, 2):
        keep_epoch(tmp_path, identity, epoch, phi)
    assert are_kept(tmp_path, identity, 2)
    assert not are_kept(tmp_path, identity, 3)
    assert sorted(kept_epochs(tmp_path, identity, 2)) == [
        "0001.bias",
        "0001.weight",
        "0002.bias",
        "0002.weight",
    ]
    (tmp_path / "epoch-0001.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=r"epoch-0001\.safetensors as it was written"):
        kept_epochs(tmp_path, identity, 2)


def interrupt(*args: object, **kwargs: object) -> Any:
    raise KeyboardInterrupt
