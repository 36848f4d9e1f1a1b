"""Weights of backbones: random, from files, from a bundle's state, from torchvision's cache and server."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import STRIDES, cut_network, lively_resnet18, pixels
from safetensors.torch import save_file
from torch import Tensor, nn

from cfa_index.backbones import (
    BACKBONES,
    WeightsOrigin,
    backbone_from_state,
    load_backbone,
    registry as registry_module,
    sha256_of_tensors,
)
from cfa_index.errors import OutputError, WeightsError


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return lively_resnet18()


@pytest.fixture(scope="module")
def resnet18_file(resnet18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(resnet18.state_dict(), path)
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty torch hub folder and a network that refuses; gives the folder of checkpoints."""
    return cut_network(monkeypatch, tmp_path)


# --- random weights -------------------------------------------------------------------------------


def test_random_weights_are_reproducible_recorded_and_leave_torch_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = load_backbone("resnet18", (8,), weights="random", seed=5)
    again = load_backbone("resnet18", (8,), weights="random", seed=5)
    other = load_backbone("resnet18", (8,), weights="random", seed=6)
    deeper = load_backbone("resnet18", (8, 16), weights="random", seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.origin == again.origin
    assert first.origin.source == "random (seed 5)"
    assert first.origin.is_random
    assert first.origin.sha256 != other.origin.sha256
    assert torch.equal(first.levels(pixels())[0], again.levels(pixels())[0])
    assert torch.equal(first.levels(pixels())[0], deeper.levels(pixels())[0])


# --- weights from files, from a bundle's state ----------------------------------------------------


def test_the_same_weights_have_the_same_hash_however_they_come(
    resnet18: nn.Module, resnet18_file: Path, tmp_path: Path
) -> None:
    wrapped, safe = tmp_path / "wrapped.pt", tmp_path / "mine.safetensors"
    state = resnet18.state_dict()
    torch.save({"state_dict": state, "epoch": 3}, wrapped)
    save_file({name: value for name, value in state.items() if "num_batches" not in name}, safe)
    plain = load_backbone("resnet18", (4, 8), weights=resnet18_file)
    assert plain.origin.source == "file mine.pth"
    for path in (wrapped, safe):
        loaded = load_backbone("resnet18", (4, 8), weights=path)
        assert loaded.origin == WeightsOrigin(source=f"file {path.name}", sha256=plain.origin.sha256)
        assert torch.equal(loaded.levels(pixels())[1], plain.levels(pixels())[1])


def test_the_hash_sees_names_shapes_and_values() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    base = sha256_of_tensors({"a": tensor, "b": tensor})
    assert base == sha256_of_tensors({"b": tensor, "a": tensor.T.contiguous().T})
    assert len({base, *map(sha256_of_tensors, _variants(tensor))}) == 5


def _variants(tensor: Tensor) -> list[dict[str, Tensor]]:
    return [
        {"a": tensor, "c": tensor},
        {"a": tensor, "b": tensor.reshape(3, 2)},
        {"a": tensor, "b": tensor + 1},
        {"a": tensor, "b": tensor.double()},
    ]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_state_makes_the_same_backbone_again(name: str, resnet18_file: Path, tmp_path: Path) -> None:
    weights = resnet18_file if name == "resnet18" else None
    backbone = load_backbone(name, (8, 16), weights=weights)
    state = backbone.state_tensors()
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in state.values())
    assert sha256_of_tensors(state) == backbone.origin.sha256
    save_file(state, tmp_path / "backbone.safetensors")  # refuses tensors that share memory
    again = backbone_from_state(name, (8, 16), size_px=224, state=state, origin=backbone.origin)
    assert again.origin == backbone.origin
    assert all(torch.equal(a, b) for a, b in zip(again(pixels()), backbone(pixels()), strict=True))
    with pytest.raises(WeightsError, match=r"stored model, got no tensor .* build it again"):
        backbone_from_state("wide_resnet50_2", (8, 16), size_px=224, state={}, origin=backbone.origin)


def test_half_precision_files_are_read_as_float32(resnet18: nn.Module, tmp_path: Path) -> None:
    torch.save({k: v.half() for k, v in resnet18.state_dict().items()}, tmp_path / "half.pth")
    backbone = load_backbone("resnet18", (4,), weights=tmp_path / "half.pth")
    assert backbone.state_tensors()["conv1.weight"].dtype == torch.float32


class _Evil:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def _bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("these are no weights\n" * 50)
    elif kind == "cut":
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(_Evil(folder / "executed")))
    elif kind == "torch pickle":
        torch.save({"conv1.weight": _Evil(folder / "executed")}, path)
    elif kind == "safetensors":
        path = folder / "bad.safetensors"
        path.write_bytes(b"\xff" * 100)
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "no tensors":
        torch.save({}, path)
    elif kind == "numbers":
        torch.save({"conv1.weight": 3.0}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        ("missing", "no such file"),
        ("folder", "a folder"),
        ("empty", "cannot be read as weights"),
        ("text", "cannot be read as weights"),
        ("cut", "cannot be read as weights"),
        ("pickle", "refused"),
        ("torch pickle", "refused"),
        ("safetensors", "cannot be read as weights"),
        ("list", "got a list"),
        ("no tensors", "without tensors"),
        ("numbers", "'conv1.weight' with a float"),
    ],
)
def test_files_that_are_no_weights(kind: str, got: str, tmp_path: Path) -> None:
    path = _bad_file(kind, tmp_path)
    with pytest.raises(WeightsError, match=got) as caught:
        load_backbone("resnet18", (8,), weights=path)
    message = str(caught.value)
    assert str(path) in message
    assert "--weights" in message
    assert "\n" not in message
    assert "weights_only" not in message
    assert not (tmp_path / "executed").exists()


def _damaged(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        del state["layer2.0.bn1.bias"]
    elif how == "shape":
        state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    elif how == "shape of a layer that is not used":
        state["layer4.0.conv1.weight"] = torch.zeros(1, 1, 1, 1)
    elif how == "prefix":
        state = {f"module.{name}": value for name, value in state.items()}
    elif how == "type":
        state["bn1.weight"] = state["bn1.weight"].int()
    elif how == "nan":
        state["bn1.weight"][3] = torch.nan
    return state


@pytest.mark.parametrize(
    ("how", "got"),
    [
        ("missing", "no tensor 'layer2.0.bn1.bias'"),
        ("shape", r"'layer1.0.conv1.weight' of shape \(64, 64, 1, 1\) instead of \(64, 64, 3, 3\)"),
        ("shape of a layer that is not used", "'layer4.0.conv1.weight' of shape"),
        ("prefix", r"no tensor 'conv1.weight' \(the first one there is 'module.conv1.weight'\)"),
        ("type", "'bn1.weight' of type torch.int32"),
        ("nan", "'bn1.weight' with values that are not finite"),
    ],
)
def test_weights_that_do_not_fit(how: str, got: str, resnet18_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(_damaged(torch.load(resnet18_file, weights_only=True), how), path)
    with pytest.raises(
        WeightsError, match=rf"weights of resnet18 in file other.pth, got .*{got}.*--backbone"
    ):
        load_backbone("resnet18", (8,), weights=path)


def test_weights_of_a_deeper_network_that_begins_alike_are_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(WeightsError, match=r"a tensor 'layer1.2.conv1.weight', which this network does not"):
        load_backbone("resnet18", (4,), weights=tmp_path / "resnet34.pth")


def test_weights_with_other_classes_are_taken(resnet18_file: Path, tmp_path: Path) -> None:
    state = torch.load(resnet18_file, weights_only=True)
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 512), torch.zeros(7)
    torch.save(state, tmp_path / "seven.pth")
    assert load_backbone("resnet18", (4,), weights=tmp_path / "seven.pth").channels == (64,)


# --- torchvision's cache and download -------------------------------------------------------------


def test_no_cache_and_no_network_says_what_is_missing_and_leaves_nothing(no_network: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_backbone("wide_resnet50_2", STRIDES)
    message = str(caught.value)
    for part in ("wide_resnet50_2-95faca4d.pth", str(no_network), "no route", "--weights", "$TORCH_HOME"):
        assert part in message
    assert not no_network.exists()


class _Response:
    """As much of an HTTP response as the download uses."""

    def __init__(self, content: bytes, fails: bool = False) -> None:
        self.content, self.fails = content, fails

    def __enter__(self) -> _Response:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def read(self, size: int) -> bytes:
        chunk, self.content = self.content[:size], self.content[size:]
        if not chunk and self.fails:
            raise TimeoutError("timed out")
        return chunk


def _serve(monkeypatch: pytest.MonkeyPatch, response: _Response) -> list[str]:
    asked: list[str] = []

    def answer(url: str, timeout: float) -> _Response:
        asked.append(url)
        return response

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return asked


def test_a_download_that_breaks_or_is_wrong_leaves_nothing(
    no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for response, got in [
        (_Response(b"x" * 3_000_000, fails=True), "timed out"),
        (_Response(b"x" * 3_000_000), "incomplete or not the published file"),
    ]:
        _serve(monkeypatch, response)
        with pytest.raises(WeightsError, match=got):
            load_backbone("resnet18", (8,))
        assert list(no_network.iterdir()) == []


def _pin(monkeypatch: pytest.MonkeyPatch, file: Path) -> str:
    """Make `file` the published weights of resnet18; gives the name that carries its hash."""
    name = f"resnet18-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    entry = dataclasses.replace(BACKBONES["resnet18"], checkpoint=name)
    monkeypatch.setattr(registry_module, "BACKBONES", {"resnet18": entry})
    return name


def test_a_download_is_checked_kept_and_used_again(
    no_network: Path, monkeypatch: pytest.MonkeyPatch, resnet18_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = _pin(monkeypatch, resnet18_file)
    asked = _serve(monkeypatch, _Response(resnet18_file.read_bytes()))
    first = load_backbone("resnet18", (8,))
    second = load_backbone("resnet18", (8,))
    assert asked == [f"https://download.pytorch.org/models/{name}"]
    assert [path.name for path in no_network.iterdir()] == [name]
    assert first.origin == second.origin
    assert first.origin.source == "torchvision IMAGENET1K_V1"
    assert first.origin.sha256 == load_backbone("resnet18", (8,), weights=resnet18_file).origin.sha256
    assert capsys.readouterr().out == ""


def test_a_damaged_cache_is_an_error(no_network: Path, resnet18_file: Path) -> None:
    no_network.mkdir(parents=True)
    shutil.copy(resnet18_file, no_network / "resnet18-f37072fd.pth")
    with pytest.raises(WeightsError, match=r"begins with f37072fd, got \w{8}; remove this file"):
        load_backbone("resnet18", (8,))


def test_a_cache_that_cannot_be_written_is_an_output_error(
    no_network: Path, monkeypatch: pytest.MonkeyPatch, resnet18_file: Path
) -> None:
    _pin(monkeypatch, resnet18_file)
    _serve(monkeypatch, _Response(resnet18_file.read_bytes()))
    no_network.parent.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="checkpoints"):
        load_backbone("resnet18", (8,))
