"""The patch descriptor phi: one 1x1 CoordConv over the feature pyramid (PAPER, Features).

phi is linear and acts on each cell alone, bilinear upsampling acts on each channel alone, so they
commute: the weights of a level are applied at its own resolution and the result is upsampled. The
coordinates and the bias are added once, on the finest grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cfa_index.errors import SpecError
from cfa_index.moments import Moments
from cfa_index.pyramid import upsample_level
from cfa_index.specs import DescriptorSpec

_LEAST_STD = 0.1
"""Least standard deviation of a channel, relative to the root mean square over its level: a channel
that is nearly constant over the good images must not turn its noise into distance."""


class PatchDescriptor(nn.Module):
    """phi(p) = W [(p - mean) / std; x; y] + b, from D channels in levels to D' = len(bias).

    Args:
        channels: C_l of each level, finest first; D is their sum.
        weight: (D', D + 2), the last two columns act on the coordinates x and y in [-1, 1].
        bias: (D',).
        mean, std: (D,), the standardisation; zeros and ones for none.
        products: what the matrix products are computed in, float32 or bfloat16; their sum over the levels
            is float32.
        is_folded: the standardisation is none and nothing will change: what depends on the grid alone is kept.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        *,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        std: Tensor,
        products: torch.dtype = torch.float32,
        is_folded: bool = False,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.products = products
        self._is_folded = is_folded
        self._bases: dict[tuple[int, int, torch.device], Tensor] = {}
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = nn.Parameter(bias.detach().clone().float())
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())

    @property
    def width(self) -> int:
        """D'."""
        return self.bias.shape[0]

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight (D', D + 2) and bias (D',) with the standardisation folded in; same phi, same gradients."""
        if self._is_folded:
            return self.weight, self.bias
        depth = self.mean.shape[0]
        scaled = self.weight[:, :depth] / self.std
        weight = torch.cat([scaled, self.weight[:, depth:]], dim=1)
        return weight, self.bias - scaled @ self.mean

    def folded(self, products: torch.dtype = torch.float32) -> PatchDescriptor:
        """The same function without a standardisation step, frozen: what inference uses."""
        with torch.no_grad():
            weight, bias = self.effective()
        ones, zeros = torch.ones_like(self.std), torch.zeros_like(self.mean)
        return PatchDescriptor(
            self.channels,
            weight=weight,
            bias=bias,
            mean=zeros,
            std=ones,
            products=products,
            is_folded=True,
        ).requires_grad_(False)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Adapt a pyramid.

        Args:
            levels: (B, C_l, h_l, w_l) each, finest first; any float dtype, channels_last is fastest.

        Returns:
            float32 (B, h*w, D'), cells in row-major order of the finest grid.
        """
        grid = (levels[0].shape[-2], levels[0].shape[-1])
        weight, bias = self.effective()
        *per_level, on_coordinates = torch.split(weight, [*self.channels, 2], dim=1)
        base = self._base(grid, on_coordinates, bias)
        cells = [level.to(self.products).permute(0, 2, 3, 1) for level in levels]  # (B, h_l, w_l, C_l)
        weights = [level_weight.to(self.products).T for level_weight in per_level]
        finest = cells[0].flatten(1, 2)  # (B, h*w, C_0)
        if self.products == torch.float32:
            batch = len(finest)
            total = torch.baddbmm(base.expand(batch, -1, -1), finest, weights[0].expand(batch, -1, -1))
        else:
            total = base + finest @ weights[0]  # (B, h*w, D'), float32 as `base` is
        for coarser, level_weight in zip(cells[1:], weights[1:], strict=True):
            total.add_(_upsample_last((coarser @ level_weight).float(), grid).flatten(1, 2))
        return total

    def _base(self, grid: tuple[int, int], on_coordinates: Tensor, bias: Tensor) -> Tensor:
        """What the coordinates and the bias give: (h*w, D')."""
        at = (*grid, bias.device)
        if at in self._bases:
            return self._bases[at]
        base = coordinates(grid, bias.device) @ on_coordinates.T + bias
        if self._is_folded:
            self._bases[at] = base
        return base


def _upsample_last(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Upsample (B, h_l, w_l, C) to (B, h, w, C)."""
    return upsample_level(cells.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)


def coordinates(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """CoordConv's two channels over a grid (h, w): float32 (h*w, 2), columns x and y in [-1, 1].

    Computed on `device` (None: the host): a copy from the host would wait for a card in every forward pass.
    """
    height, width = grid
    down, across = (torch.linspace(-1, 1, cells, device=device) for cells in (height, width))
    y, x = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def needs_moments(spec: DescriptorSpec) -> bool:
    """Whether phi_0 is made from the patches' mean and covariance."""
    return spec.standardise or spec.init == "whiten"


def initial_descriptor(
    spec: DescriptorSpec, channels: Sequence[int], moments: Moments | None, *, seed: int
) -> PatchDescriptor:
    """phi_0 as `spec.init` says.

    Args:
        spec: initialisation, gamma_d, standardisation, shrinkage.
        channels: C_l of each level.
        moments: of the patches, D = sum(channels); needed by `whiten` and by `standardise`.
        seed: of the random initialisations.

    Raises:
        SpecError: the moments are missing or of another width.
    """
    depth = sum(channels)
    needed = needs_moments(spec)
    if needed and (moments is None or moments.mean.shape != (depth,)):
        raise SpecError(
            expected=f"the mean and covariance of {depth}-dimensional patches",
            got="none" if moments is None else f"{moments.mean.shape[0]} dimensions",
            remedy="build the store first",
        )
    mean, std = torch.zeros(depth), torch.ones(depth)
    if needed and moments is not None:
        mean = torch.from_numpy(moments.mean)
        if spec.standardise:
            std = torch.from_numpy(_floored_std(moments, channels))
    width = spec.width(depth)
    weight, bias = torch.zeros(width, depth + 2), torch.zeros(width)
    generator = torch.Generator().manual_seed(seed)
    if spec.init == "he":  # He et al. 2015: normal with variance 2 / fan_in
        weight.normal_(0.0, (2 / (depth + 2)) ** 0.5, generator=generator)
    elif spec.init == "torch":  # torch's own Conv2d default, which the published code keeps
        bound = (depth + 2) ** -0.5
        weight.uniform_(-bound, bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
    elif spec.init == "identity":
        weight[:, :depth] = torch.eye(depth)
    elif moments is not None:
        weight[:, :depth] = torch.from_numpy(_whitening(moments, std.numpy(), width, spec.shrinkage))
    return PatchDescriptor(channels, weight=weight, bias=bias, mean=mean, std=std)


def _floored_std(moments: Moments, channels: Sequence[int]) -> NDArray[np.float64]:
    """Standard deviation of each channel, not below `_LEAST_STD` of its level's."""
    variances = np.clip(np.diag(moments.covariance), 0, None)
    floored = []
    for level in np.split(variances, np.cumsum(channels)[:-1]):
        scale = float(np.sqrt(level.mean())) or 1.0
        floored.append(np.maximum(np.sqrt(level), _LEAST_STD * scale))
    return np.concatenate(floored)


def _whitening(
    moments: Moments, std: NDArray[np.float64], width: int, shrinkage: float
) -> NDArray[np.float64]:
    """(D', D): inverse root of the standardised covariance plus `shrinkage` times its mean variance.

    At D' = D it is the symmetric root, the whitening that stays closest to its input; below, the
    leading D' principal directions. Distances are the same for both at D' = D. Divided by sqrt(D'),
    so that the mean squared norm of a good patch is at most 1 at any width: margin, radius and Eq. 5's
    exponentials then mean the same for every backbone.
    """
    covariance = moments.covariance / np.outer(std, std)
    values, vectors = np.linalg.eigh(covariance)
    ridge = max(shrinkage * float(np.trace(covariance)) / len(values), 1e-10)
    scales = 1 / np.sqrt((np.clip(values, 0, None) + ridge) * width)
    if width == len(values):
        return np.asarray((vectors * scales) @ vectors.T)
    leading = np.argsort(values)[::-1][:width]
    return np.asarray((vectors[:, leading] * scales[leading]).T)
