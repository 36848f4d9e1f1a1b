"""What a forward pass holds at its peak, counted on shapes, against the same pass with values."""

from __future__ import annotations

import pytest
import torch
from networks import pixels

from cfa_index.backbones import forward_bytes, load_backbone
from cfa_index.backbones.forward import LiveBytes


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_shapes_tell_what_the_pass_holds(name: str) -> None:
    backbone = load_backbone(name, (8, 16), size_px=64, weights="random")
    batch = pixels(2)
    with torch.inference_mode(), LiveBytes() as live:
        levels = backbone.pyramid(batch)
    assert forward_bytes(backbone, 2, 64) == live.peak
    assert live.now == sum(level.nbytes for level in levels)
    assert forward_bytes(backbone, 4, 64) == 2 * live.peak


def test_half_the_precision_holds_less_and_nothing_is_compiled() -> None:
    backbone = load_backbone("resnet18", (8, 16), size_px=64, weights="random")
    full = forward_bytes(backbone, 2, 64)
    half = forward_bytes(backbone.for_inference("bf16", compiled=True), 2, 64)
    assert full / 2 < half < full  # pixels are normalised in float32


def test_views_are_counted_once_and_what_is_dropped_no_more() -> None:
    with LiveBytes() as live:
        one = torch.zeros(1_000)
        assert live.now == 4_000
        two = one.view(10, 100)[3].add_(1)
        assert live.now == 4_000
        del one
        assert live.now == 4_000
        del two
        assert live.now == 0
        torch.ones(10)
    assert live.peak == 4_000
