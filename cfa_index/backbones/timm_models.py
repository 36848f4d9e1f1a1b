"""Any model of timm that offers features, as `timm:NAME`: which of its maps make the levels."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfa_index.backbones.entry import BOOKKEEPING, BackboneEntry, optional_package
from cfa_index.errors import SpecError

TIMM = "timm:"
"""What the name of such a backbone begins with."""
_STRIDES = (4, 8, 16)
_PROBE_PX = 224


@dataclass(frozen=True, kw_only=True)
class TimmLayout:
    """Which feature maps of a timm model make the levels.

    A network whose maps become coarser gives its last map at each of the strides 4, 8 and 16. A plain
    transformer, whose maps are all alike, gives one level: its last block's tokens after the final
    norm, at the smallest of these strides that its patch fits into. Where the patch is smaller than
    that, as DINOv2's of 14 pixels, the image is resampled first, to 14/16 of its side.

    Attributes:
        model: timm's name of it.
        indices: of the feature map at each stride.
        patch: side of a plain transformer's patch in its own pixels; 0 for other networks.
    """

    model: str
    indices: Mapping[int, int]
    patch: int

    def network(self, size_px: int, seed: int = 0) -> nn.Module:
        """The whole network for images of `size_px`, with timm's own initialisation from `seed`."""
        network: nn.Module = _create(self.model, self.resampled(size_px), seed)
        return network

    def resampled(self, side_px: int) -> int:
        """Side of the image that the network sees, for an image of `side_px`."""
        return side_px * self.patch // next(iter(self.indices)) if self.patch else side_px

    def converted(
        self, state: Mapping[str, Tensor], size_px: int, classifier: Sequence[str]
    ) -> Mapping[str, Tensor] | None:
        """`state` by the names of today, if timm knows the names that it has; else None.

        Args:
            state: tensors by name, as the model's first authors or an older timm called them.
            size_px: side of the images.
            classifier: see `BackboneEntry`.
        """
        # With as many classes as there are in `state`, timm loads strictly.
        classes = next((len(state[f"{c}weight"]) for c in classifier if f"{c}weight" in state), 0)
        try:
            network: nn.Module = _create(
                self.model,
                self.resampled(size_px),
                pretrained=True,
                num_classes=classes,
                pretrained_cfg_overlay={"state_dict": dict(state), "num_classes": classes},
            )
        except Exception:  # tensors of another network make timm's renaming raise nearly anything
            return None
        return network.state_dict()

    def used(self, network: nn.Module, coarsest: int) -> list[str]:
        """See `Layout.used`."""
        del network  # pruning changes a network, so a second one, without values, is pruned
        with torch.device("meta"):
            pruned = self.network(_PROBE_PX)
        self.cut(pruned, tuple(stride for stride in self.indices if stride <= coarsest))
        return [name for name in pruned.state_dict() if not name.endswith(BOOKKEEPING)]

    def cut(self, network: nn.Module, strides: tuple[int, ...]) -> nn.Module:
        """See `Layout.cut`. Batch norms stay: timm's hold an activation and need not follow a convolution."""
        return _Trunk(network.eval(), self, [self.indices[stride] for stride in strides])


class _Trunk(nn.Module):
    """A timm model without the layers that its asked feature maps do not need."""

    def __init__(self, network: Any, layout: TimmLayout, indices: list[int]) -> None:
        super().__init__()
        network.prune_intermediate_layers(indices, prune_norm=not layout.patch)
        self.network = network
        self._layout = layout
        self._indices = indices

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        size = self._layout.resampled(x.shape[-2]), self._layout.resampled(x.shape[-1])
        if size != x.shape[-2:]:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        maps = self.network.forward_intermediates(
            x,
            indices=self._indices,
            norm=self._layout.patch > 0,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return [[one] for one in maps]


def timm_entry(name: str) -> BackboneEntry:
    """The entry of a timm model; it is built once without values, to see its maps.

    Args:
        name: "timm:" and a name of timm, with or without the tag of its weights, such as
            timm:convnext_tiny.in12k_ft_in1k.

    Raises:
        SpecError: timm has no model of that name, or this one offers no features at strides 4, 8, 16.
        WeightsError: timm is not installed.
    """
    model = name.removeprefix(TIMM)
    timm = timm_package()
    if not timm.is_model(model):
        near = difflib.get_close_matches(model.partition(".")[0], timm.list_models(), n=3)
        raise SpecError(
            expected=f"a model of timm {timm.__version__}",
            got=repr(name),
            remedy=f"did you mean {' or '.join(near)}" if near else "see timm.list_models()",
        )
    try:
        with torch.device("meta"):
            network = _create(model, _PROBE_PX)
            layout = _layout_of(model, network)
            if layout.patch:
                network = layout.network(_PROBE_PX)
            config: Mapping[str, Any] = dict(network.pretrained_cfg)
            with torch.no_grad():
                levels = layout.cut(network, tuple(layout.indices))(torch.empty(1, 3, _PROBE_PX, _PROBE_PX))
    except Exception as error:  # a thousand networks, each with reasons of its own
        raise SpecError(
            expected=f"{name} to offer feature maps at some of the strides 4, 8, 16",
            got=f"{type(error).__name__}: {error}"[:200],
            remedy="choose another model",
        ) from error
    heads = config.get("classifier") or ()
    return BackboneEntry(
        name=name,
        channels=MappingProxyType(
            {stride: maps[0].shape[1] for stride, maps in zip(layout.indices, levels, strict=True)}
        ),
        mean=_times_255(config["mean"]),
        std=_times_255(config["std"]),
        weights=str(config.get("hf_hub_id") or ""),
        checkpoint=_safe_file(config.get("hf_hub_filename")),
        make=layout.network,
        layout=layout,
        classifier=tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads)),
    )


def timm_package() -> Any:
    """Import timm. Raises WeightsError when it is not installed."""
    return optional_package("timm", needed_by=f"{TIMM}NAME", extra="timm")


def _create(model: str, side_px: int, seed: int = 0, **options: Any) -> Any:
    """A timm model for images of `side_px`; the random state of torch is neither read nor changed."""
    timm = timm_package()
    # Transformers that take any size; networks that are built for one; all others.
    for size in ({"dynamic_img_size": True}, {"img_size": side_px}, {}):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                return timm.create_model(model, **{"pretrained": False, **size, **options})
            except TypeError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
    raise AssertionError("a network that is created without options has none that it does not expect")


def _layout_of(model: str, network: Any) -> TimmLayout:
    info = network.feature_info
    reductions = [int(one["reduction"]) for one in getattr(info, "info", info)]
    patch = reductions[0] if len(set(reductions)) == 1 else 0
    if patch:
        indices = {stride: len(reductions) - 1 for stride in _STRIDES if stride // 2 < patch <= stride}
    else:
        indices = {reduction: index for index, reduction in enumerate(reductions) if reduction in _STRIDES}
    if not indices:
        raise ValueError(f"maps at strides {', '.join(map(str, sorted(set(reductions))))} only")
    return TimmLayout(model=model, indices=MappingProxyType(indices), patch=patch)


def _times_255(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (255.0 * value for value in values)
    return red, green, blue


def _safe_file(published: str | None) -> str:
    """Name of the safetensors file on the hub, which timm's own repositories keep beside their pickles."""
    return published if published and published.endswith(".safetensors") else "model.safetensors"
