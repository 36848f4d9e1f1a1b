"""Networks with batch norms that do something, pixels for them, and what a frozen network may round."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

SIZE_PX = 64
STRIDES = (4, 8, 16)


def pixels(batch: int = 2, size_px: int = SIZE_PX, seed: int = 0) -> Tensor:
    """(batch, 3, size_px, size_px) uint8 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


def close(got: Tensor, expected: Tensor) -> bool:
    """Within 1e-5 of the level's largest value: float32 rounding through some forty layers."""
    return bool((got.double() - expected.double()).abs().max() <= 1e-5 * expected.abs().max())


def lively(make: Callable[[], nn.Module], seed: int = 3) -> nn.Module:
    """A network whose batch norms are not trivial, so that folding them is tested."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return network.eval()


def lively_resnet18() -> nn.Module:
    """torchvision's, whole."""
    return lively(torchvision.models.resnet18)


def outputs_of(network: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """What the named submodules gave while `network` saw `x`, copied before anything works in place."""
    taken: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: taken.__setitem__(name, output.clone())
        )
        for name in names
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return taken


def imagenet_normalised(image: Tensor) -> Tensor:
    """Pixels in 0..255 as torchvision's networks take them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def cut_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Empty caches of weights below `folder` and a network that refuses; gives torch's folder of checkpoints."""

    def refuse(url: object, timeout: float) -> Any:
        assert 0 < timeout <= 10
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return folder / "hub" / "checkpoints"
