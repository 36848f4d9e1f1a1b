"""What `cfa-index backbones` says: costs counted by hand, weights that are here, and nothing downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
import torchvision
from made_up import cfa
from networks import cut_network, outputs_of
from torch import nn

from cfa_index.backbones import BACKBONES, backbone_facts, backbone_names
from cfa_index.errors import SpecError


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty torch hub folder and a network that refuses; gives the folder of checkpoints."""
    return cut_network(monkeypatch, tmp_path)


def counted_by_hand(network: nn.Module, layers: tuple[str, ...]) -> tuple[int, int]:
    """Multiplications of the convolutions in `layers` for 224 px, and their parameters with the norms'."""
    kept = {name: part for name, part in network.named_modules() if name.startswith(layers)}
    convolutions = {name: part for name, part in kept.items() if isinstance(part, nn.Conv2d)}
    outputs = outputs_of(network.eval(), list(convolutions), torch.zeros(1, 3, 224, 224))
    macs = 0
    for name, one in convolutions.items():
        height, width = one.kernel_size
        macs += outputs[name].numel() * one.in_channels // one.groups * int(height) * int(width)
    leaves = [part for part in kept.values() if not list(part.children())]
    return macs, sum(value.numel() for part in leaves for value in part.parameters())


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ("conv1", "bn1", "layer1", "layer2", "layer3")),
        ("efficientnet_b5", tuple(f"features.{stage}." for stage in range(6))),
    ],
)
def test_costs_are_those_counted_by_hand(name: str, layers: tuple[str, ...], no_network: Path) -> None:
    facts = backbone_facts(name)
    network: nn.Module = torchvision.models.get_model(name)
    assert (facts.macs, facts.parameters) == counted_by_hand(network, layers)


def test_weights_are_at_hand_when_the_file_is_there(no_network: Path) -> None:
    assert backbone_facts("resnet18").file is None
    no_network.mkdir(parents=True)
    file = no_network / BACKBONES["resnet18"].checkpoint
    file.touch()
    assert backbone_facts("resnet18").file == file


def test_a_missing_package_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    facts = backbone_facts("efficientnet_lite1")
    assert (facts.macs, facts.parameters, facts.file) == (None, None, None)
    assert facts.missing == "pip install 'cfa-index[lite]'"
    assert dict(facts.channels) == {4: 24, 8: 40, 16: 112}


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(SpecError, match="a backbone among wide_resnet50_2"):
        backbone_facts("alexnet")


def test_the_command_lists_every_network(no_network: Path) -> None:
    outcome = cfa("backbones", "--json", "-", env={"COLUMNS": "160"})
    assert outcome.code == 0, outcome
    rows: dict[str, Any] = {row["name"]: row for row in outcome.document["backbones"]}
    assert tuple(rows) == backbone_names()
    assert rows["wide_resnet50_2"]["channels"] == {"4": 256, "8": 512, "16": 1024}
    assert rows["wide_resnet50_2"]["at_hand"] is False
    assert rows["efficientnet_lite0"]["normalisation"] == "(x - 127) / 128"
    assert rows["efficientnet_lite0"]["at_hand"] is True
    assert 9e9 < rows["wide_resnet50_2"]["macs"] < 10e9
    for words in ("vgg19_bn", "ImageNet mean, std", "timm:NAME"):
        assert words in outcome.err


def test_the_command_shows_networks_of_timm(no_network: Path) -> None:
    timm = pytest.importorskip("timm")
    outcome = cfa("backbones", "timm:test_vit", "timm:resnet18.tv_in1k", "--json", "-")
    assert outcome.code == 0, outcome
    vit, resnet = outcome.document["backbones"]
    assert (vit["channels"], vit["normalisation"]) == ({"16": 64}, "(x - 127.5) / 127.5")
    assert outcome.document["timm"] == {"version": timm.__version__, "models": len(timm.list_models())}
    # The same network twice: timm's costs what torchvision's does.
    twin = backbone_facts("resnet18")
    assert (resnet["macs"], resnet["parameters"]) == (twin.macs, twin.parameters)
    assert resnet["normalisation"] == twin.normalisation


def test_the_command_without_timm_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    outcome = cfa("backbones", "resnet18", "--json", "-")
    assert (outcome.code, outcome.document["timm"]) == (0, None)
    assert "timm:NAME: pip install 'cfa-index[timm]'" in outcome.err
    assert "pip install" in cfa("backbones", "timm:test_vit").error_line


@pytest.mark.parametrize(
    ("options", "expansion", "width"),
    [
        (("--preset", "paper", "--gamma-d", "1/4"), 2.0, 284),
        (("--preset", "published-code", "--init", "whiten", "--gamma-d", "1/4"), 1.0, 142),
        (("--preset", "recommended", "--init", "he", "--strides", "4,8,16"), 1.0, 568),
    ],
)
def test_the_presets_of_the_paper_widen_phi_for_efficientnet_b5(
    options: tuple[str, ...], expansion: float, width: int, tmp_path: Path
) -> None:
    place = made_up.workplace(tmp_path, train=5, test=1)
    network = ("--backbone", "efficientnet_b5", "--weights", "random", "--size", "64", "--bank-size", "16")
    built = cfa("build", "-c", "weave", *place.everything, *network, *options, "--json", "-")
    assert built.code == 0, built
    assert built.document["spec"]["descriptor"]["expansion"] == expansion
    assert built.document["width"] == width
