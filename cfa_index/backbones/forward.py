"""What a forward pass of a backbone holds at its peak, counted without doing it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cfa_index.backbones.network import Backbone


def forward_bytes(backbone: Backbone, images: int, size_px: int) -> int:
    """Bytes of tensors that `Backbone.pyramid` holds at most at a time, besides pixels and weights.

    Shapes alone go through the network, on torch's meta device: nothing is computed or allocated, on no device.
    What libraries use inside one operation, such as cuDNN's workspaces, is not seen.

    Args:
        backbone: on any device, of any precision.
        images: B.
        size_px: side of the squares.
    """
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]
    }
    pixels = torch.empty((images, 3, size_px, size_px), dtype=torch.uint8, device="meta")
    # A compiled trunk would be compiled for the meta device; importing what prevents it takes a second.
    eager = torch.compiler.set_stance("force_eager") if backbone.compiled else nullcontext()
    live = LiveBytes()
    with torch.inference_mode(), eager, live:
        functional_call(backbone, shapes, (pixels,))
    return live.peak


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    """Counts the bytes of the tensors that operations in its body make, while something holds them.

    Attributes:
        now: of those that are held.
        peak: the most at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor has this
        self.now: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        given = dict(kwargs or {})
        theirs = {_key(one) for one in tree_leaves((args, given)) if isinstance(one, Tensor)}
        result = func(*args, **given)
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and _key(one) not in theirs | self._known:
                self._count(one)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    """Views share it."""
    return int(tensor.untyped_storage()._cdata)
