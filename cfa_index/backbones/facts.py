"""What a network is and costs, without its weights: for the table that helps to choose one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cfa_index.backbones.entry import BackboneEntry
from cfa_index.backbones.registry import backbone_entry
from cfa_index.backbones.timm_models import timm_package
from cfa_index.backbones.weights import checkpoint_path
from cfa_index.errors import WeightsError

COST_SIZE_PX = 224
"""Side of the image that `BackboneFacts.macs` is for."""


@dataclass(frozen=True, kw_only=True)
class BackboneFacts:
    """One network.

    Attributes:
        name: as given to `--backbone`.
        channels: C_l of the level at each stride.
        normalisation: what the network does to a pixel x in 0..255 first, in words.
        macs: multiplications with an addition, of convolutions and matrix products, for one image of
            224 px up to the coarsest level; None where a package is missing.
        parameters: of the layers up to there, as published; None where a package is missing.
        weights: where they come from when none are handed over; "" for nowhere.
        file: where they lie on this machine; None if they are not here.
        missing: how to install the package that is missing; "" if none is.
    """

    name: str
    channels: Mapping[int, int]
    normalisation: str
    macs: int | None
    parameters: int | None
    weights: str
    file: Path | None
    missing: str


def backbone_facts(name: str) -> BackboneFacts:
    """The facts of one network; it is built without values, and no download is tried.

    Args:
        name: one of `backbone_names()`, or timm:NAME.

    Raises:
        SpecError: there is no network of that name.
        WeightsError: timm is asked for and not installed.
    """
    entry = backbone_entry(name)
    file, macs, parameters, missing = None, None, None, ""
    try:
        macs, parameters = _cost(entry)
        if entry.weights:
            path = checkpoint_path(entry)
            file = path if path.is_file() else None
    except WeightsError as error:
        missing = error.remedy
    return BackboneFacts(
        name=name,
        channels=entry.channels,
        normalisation=_in_words(entry),
        macs=macs,
        parameters=parameters,
        weights=entry.weights,
        file=file,
        missing=missing,
    )


def timm_offer() -> tuple[str, int]:
    """The version of timm and the number of its models; nearly all offer features.

    Raises:
        WeightsError: timm is not installed.
    """
    timm = timm_package()
    return timm.__version__, len(timm.list_models())


def _cost(entry: BackboneEntry) -> tuple[int, int]:
    """Counted on the meta device, where an operation has shapes and no values."""
    # A second of import, so not before it is needed.
    from torch.utils.flop_counter import FlopCounterMode

    strides = tuple(entry.channels)
    with torch.device("meta"), torch.no_grad():
        network = entry.make(COST_SIZE_PX)
        used = set(entry.layout.used(network, strides[-1]))
        parameters = sum(value.numel() for name, value in network.named_parameters() if name in used)
        trunk = entry.layout.cut(network, strides)
        with FlopCounterMode(display=False) as counter:
            trunk(torch.empty(1, 3, COST_SIZE_PX, COST_SIZE_PX))
    return counter.get_total_flops() // 2, parameters


def _in_words(entry: BackboneEntry) -> str:
    rounded = [[round(value, 3) for value in values] for values in (entry.mean, entry.std)]
    if rounded == [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]:
        return "ImageNet mean, std"
    if len({*entry.mean}) == len({*entry.std}) == 1:
        return f"(x - {entry.mean[0]:g}) / {entry.std[0]:g}"
    mean, std = (" ".join(f"{value:.1f}" for value in values) for values in (entry.mean, entry.std))
    return f"(x - [{mean}]) / [{std}]"
