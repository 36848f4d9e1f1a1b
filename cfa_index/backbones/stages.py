"""Networks that run straight through: their layers in order, cut where the levels lie, batch norms folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cfa_index.backbones.entry import BOOKKEEPING


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The layout of a network whose submodules, called one after the other, give its levels.

    Attributes:
        stem: names of the submodules before the first stage, in order.
        stages: names of the submodules from the level before to the level at each stride.
        maps: how many of the last submodules of the stage at a stride give a map each, for the level
            to be all of them; the strides that are not named take the last one's.
    """

    stem: tuple[str, ...] = ()
    stages: Mapping[int, tuple[str, ...]]
    maps: Mapping[int, int] = field(default_factory=dict)

    def used(self, network: nn.Module, coarsest: int) -> list[str]:
        """See `Layout.used`."""
        staged = (name for stride, names in self.stages.items() if stride <= coarsest for name in names)
        prefixes = tuple(f"{module}." for module in (*self.stem, *staged))
        return [
            name
            for name in network.state_dict()
            if name.startswith(prefixes) and not name.endswith(BOOKKEEPING)
        ]

    def cut(self, network: nn.Module, strides: tuple[int, ...]) -> nn.Module:
        """See `Layout.cut`; batch norms are folded into the convolutions before them."""
        network.eval()
        kept = [stride for stride in self.stages if stride <= strides[-1]]

        def part(names: tuple[str, ...]) -> nn.Sequential:
            # Eval mode is not inherited: a new Sequential starts in training mode, and fusing asks.
            return nn.Sequential(*(network.get_submodule(name) for name in names)).eval()

        trunk = _Trunk(
            part(self.stem),
            [part(self.stages[stride]) for stride in kept],
            [self.maps.get(stride, 1) if stride in strides else 0 for stride in kept],
        )
        _fold(trunk)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
        return trunk


class _Trunk(nn.Module):
    """Stem and stages; `maps` says how many of a stage's last outputs are wanted."""

    def __init__(self, stem: nn.Sequential, stages: list[nn.Sequential], maps: list[int]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self._maps = maps

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        x = self.stem(x)
        levels = []
        for stage, wanted in zip(self.stages, self._maps, strict=True):
            assert isinstance(stage, nn.Sequential)
            level = []
            for number, module in enumerate(stage, start=1):
                x = module(x)
                if number > len(stage) - wanted:
                    level.append(x)
            if wanted:
                levels.append(level)
        return levels


def _fold(module: nn.Module) -> None:
    """Fold every batch norm into the convolution before it, in place; equal up to fp32 rounding.

    Relies on the networks of the registry registering each batch norm right after its convolution.
    """
    previous_name, previous = "", module
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            setattr(module, previous_name, fuse_conv_bn_eval(previous, child))
            setattr(module, name, nn.Identity())
        else:
            _fold(child)
        previous_name, previous = name, child
