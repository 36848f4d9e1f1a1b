"""Settings: frozen, keyword-only, validated when made. A default lives here and nowhere else.

Ratios follow the paper (arXiv 2206.04325): `gamma_d` and `gamma_c` lie in (0, 1], with
D' = gamma_d * D and M = gamma_c * h * w.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from cfa_index.errors import SpecError

Geometry = Literal["whole", "crop", "letterbox"]
Initialisation = Literal["he", "torch", "identity", "whiten"]
Compression = Literal["hybrid", "ema", "mean", "kmeans", "coreset", "random", "full"]
Baseline = Literal["none", "position"]
Selection = Literal["none", "synthetic"]
PatchScore = Literal["nearest", "certainty"]
PresetName = Literal["recommended", "paper", "published-code"]

STRIDES = (4, 8, 16)
CROP_RATIO = 224 / 256
"""Side of the centre crop over side of the resized image (paper, Sec. 4.1: resize 256, crop 224)."""
LARGEST_SEED = 1_000_000_000
"""Every library's generator takes it."""


def _require(condition: bool, name: str, expected: str, got: object, remedy: str = "") -> None:
    if not condition:
        raise SpecError(
            expected=f"{name} to be {expected}",
            got=repr(got),
            remedy=remedy or f"give another value for {name}",
        )


class _Spec:
    """What all settings share: to and from plain JSON values, with unknown or missing keys refused."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Remake a spec from `to_dict`.

        Raises:
            SpecError: a key is unknown or missing, or a value is out of its range.
        """
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if set(values) != names:
            raise SpecError(
                expected=f"{cls.__name__} with keys {sorted(names)}",
                got=f"{sorted(values)}",
                remedy="use the version of cfa-index that wrote it, or build again",
            )
        hints = get_type_hints(cls)
        return cls(**{name: _typed(hints[name], value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, _Spec):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, _Spec):
        return hint.from_dict(value)
    return tuple(value) if get_origin(hint) is tuple else value


@dataclass(frozen=True, kw_only=True)
class FeatureSpec(_Spec):
    """From an image to its pyramid of patch features.

    Attributes:
        backbone: name in the registry of `backbones`.
        strides: levels used, finest first; the finest sets the patch grid h = w = size_px / stride.
        geometry: `whole` resizes the whole frame to a square, `crop` resizes to a square of
            size_px / CROP_RATIO and keeps its centre (the paper), `letterbox` keeps the aspect
            ratio and marks the padding as not inspected.
        size_px: side of the square that the network sees, a multiple of 16.
    """

    backbone: str = "wide_resnet50_2"
    strides: tuple[int, ...] = (8, 16)
    geometry: Geometry = "whole"
    size_px: int = 224

    def __post_init__(self) -> None:
        _require(
            self.geometry in get_args(Geometry), "geometry", f"one of {get_args(Geometry)}", self.geometry
        )
        strides_fit = len(self.strides) > 0 and tuple(sorted(set(self.strides))) == self.strides
        _require(
            strides_fit and set(self.strides) <= set(STRIDES),
            "strides",
            "some of 4, 8, 16, ascending",
            self.strides,
        )
        _require(
            32 <= self.size_px <= 4096 and self.size_px % 16 == 0,
            "size_px",
            "a multiple of 16 from 32 to 4096",
            self.size_px,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width (h, w) of the finest patch grid."""
        side = self.size_px // self.strides[0]
        return side, side

    @property
    def patches_per_image(self) -> int:
        """T = h * w."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class DescriptorSpec(_Spec):
    """The 1x1 CoordConv phi: D + 2 -> D', and where it starts (phi_0).

    Attributes:
        init: `he` (paper), `torch` (the published code's convolution default), `identity`, or
            `whiten` (closed form from the patch covariance; keeps the leading directions).
        gamma_d: D' / D, in (0, 1].
        standardise: divide each channel by its standard deviation over the store first.
        shrinkage: weight of the mean variance added to the covariance before it is inverted.
        expansion: factor on D'; the paper has D' = 2 * D * gamma_d for EfficientNet-B5.
    """

    init: Initialisation = "whiten"
    gamma_d: float = 1.0
    expansion: float = 1.0
    standardise: bool = True
    shrinkage: float = 0.1

    def __post_init__(self) -> None:
        _require(
            self.init in get_args(Initialisation), "init", f"one of {get_args(Initialisation)}", self.init
        )
        _require(
            0 < self.gamma_d <= 1, "gamma_d", "a ratio in (0, 1]", self.gamma_d, "write 1/4 or 0.25, not 4"
        )
        _require(
            self.init != "identity" or self.gamma_d == 1,
            "gamma_d",
            "1 with init 'identity'",
            self.gamma_d,
            "use init 'whiten' to keep fewer directions",
        )
        _require(0 <= self.shrinkage < math.inf, "shrinkage", "finite, 0 or more", self.shrinkage)
        _require(1 <= self.expansion <= 8, "expansion", "from 1 to 8", self.expansion)
        _require(
            self.expansion == 1 or self.init in ("he", "torch"),
            "expansion",
            f"1 with init '{self.init}'",
            self.expansion,
            "only the random initialisations can be wider than the features",
        )

    def width(self, in_channels: int) -> int:
        """D' for D = `in_channels`, at least 1."""
        return max(1, round(in_channels * self.gamma_d * self.expansion))


@dataclass(frozen=True, kw_only=True)
class BankSpec(_Spec):
    """How all patches become M memories.

    Attributes:
        method: `hybrid` (k-means centres of what is frequent, then greedy k-centre picks of what they
            cover worst), `ema` (paper, Algorithm 1), `mean` (published code: position means, then k-means),
            `kmeans` (over a streamed sample of the whole store), `coreset` (PatchCore: greedy k-centre
            after a sparse random projection), `random` (patches drawn from the store), `full` (every
            patch: SPADE's gallery).
        size: M; None means `share`, or else gamma_c * h * w. `full` heeds none of the three.
        gamma_c: ratio in (0, 1], used when `size` and `share` are None.
        share: M as a share of all good patches, in (0, 1], used when `size` is None (PatchCore's 1%).
        beta: weight of the newest image in Algorithm 1; the paper gives none, this is our choice.
        iterations: of k-means.
        coverage: share of the memories of `hybrid` that are k-centre picks, in (0, 1).
        sample_patches: most patches held at once for k-means and for finding sources.
        coreset_eps: distortion allowed to the projection of `coreset` (Johnson-Lindenstrauss), in (0, 1).
    """

    method: Compression = "hybrid"
    size: int | None = 3136
    gamma_c: float = 1.0
    share: float | None = None
    beta: float = 0.1
    iterations: int = 20
    coverage: float = 0.5
    sample_patches: int = 65_536
    coreset_eps: float = 0.9

    def __post_init__(self) -> None:
        _require(
            self.method in get_args(Compression), "method", f"one of {get_args(Compression)}", self.method
        )
        _require(self.size is None or self.size >= 1, "bank size", "1 or more", self.size)
        _require(
            0 < self.gamma_c <= 1, "gamma_c", "a ratio in (0, 1]", self.gamma_c, "write 1/4 or 0.25, not 4"
        )
        _require(
            self.share is None or 0 < self.share <= 1,
            "share of the patches",
            "in (0, 1]",
            self.share,
            "write 1/100 or 0.01 for one per cent",
        )
        _require(0 < self.beta <= 1, "beta", "in (0, 1]", self.beta)
        _require(0 < self.coverage < 1, "coverage", "in (0, 1)", self.coverage)
        _require(0 < self.coreset_eps < 1, "coreset_eps", "in (0, 1)", self.coreset_eps)
        _require(self.iterations >= 1, "iterations", "1 or more", self.iterations)
        _require(self.sample_patches >= 1, "sample_patches", "1 or more", self.sample_patches)

    @property
    def counts_all_patches(self) -> bool:
        """Whether M depends on how many good patches there are."""
        return self.method == "full" or (self.size is None and self.share is not None)

    def memories(self, patches_per_image: int, total: int | None = None) -> int:
        """M for T = `patches_per_image`; where `counts_all_patches`, for `total` good patches.

        Raises:
            SpecError: `total` is needed and not given.
        """
        if not self.counts_all_patches:
            return self.size if self.size is not None else max(1, round(self.gamma_c * patches_per_image))
        if total is None:
            raise SpecError(
                expected="the number of good patches, which decides M",
                got="None",
                remedy="give `total`, or a bank of a fixed size",
            )
        return total if self.method == "full" or self.share is None else max(1, round(self.share * total))


@dataclass(frozen=True, kw_only=True)
class IndexSpec(_Spec):
    """The FAISS index over the memories. `Flat` is exact."""

    factory: Literal["Flat"] = "Flat"

    def __post_init__(self) -> None:
        _require(self.factory == "Flat", "index", "'Flat'", self.factory)


@dataclass(frozen=True, kw_only=True)
class TrainSpec(_Spec):
    """Adapting phi against the frozen bank (Eqs. 1-3).

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate, weight_decay: of AdamW with amsgrad (paper, Sec. 4.1).
        attract: K, nearest memories that pull.
        repel: J, the next ones that push.
        margin: alpha, on squared distances.
        radius: start of the learned radius r, or `median`: the root of the median squared distance
            to the K-th neighbour under phi_0.
        learn_radius: whether r moves with the loss (the paper) or stays where it starts.
        loss_scale: factor on the loss (the published code: 1,000).
        drop_last: leave out an incomplete last batch (the published code).
        select: `synthetic` chooses start and epoch by synthetic defects; `none` takes the last epoch.
        seed: of the order of the images; None takes the model's.
    """

    epochs: int = 1
    batch_size: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 5e-4
    attract: int = 3
    repel: int = 3
    margin: float = 0.1
    radius: float | Literal["median"] = "median"
    learn_radius: bool = True
    loss_scale: float = 1.0
    drop_last: bool = False
    select: Selection = "none"
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.seed is None or 0 <= self.seed <= LARGEST_SEED,
            "seed",
            f"from 0 to {LARGEST_SEED}",
            self.seed,
        )
        _require(self.epochs >= 0, "epochs", "0 or more", self.epochs)
        _require(self.batch_size >= 1, "batch_size", "1 or more", self.batch_size)
        _require(
            0 < self.learning_rate < math.inf, "learning_rate", "finite and more than 0", self.learning_rate
        )
        _require(0 <= self.weight_decay < math.inf, "weight_decay", "finite, 0 or more", self.weight_decay)
        _require(self.attract >= 1, "attract (K)", "1 or more", self.attract)
        _require(self.repel >= 0, "repel (J)", "0 or more", self.repel)
        _require(0 <= self.margin < math.inf, "margin (alpha)", "finite, 0 or more", self.margin)
        radius_fits = self.radius == "median" if isinstance(self.radius, str) else 0 < self.radius < math.inf
        _require(radius_fits, "radius", "more than 0, or 'median'", self.radius)
        _require(self.select in get_args(Selection), "select", f"one of {get_args(Selection)}", self.select)
        _require(0 < self.loss_scale < math.inf, "loss_scale", "finite and more than 0", self.loss_scale)


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(_Spec):
    """From neighbours to a map and a score (Eqs. 4-5).

    Attributes:
        patch_score: `certainty` is Eq. 5 (the paper); `nearest` is Eq. 4 alone, the distance to the
            nearest memory. Eq. 5 depends on the scale of the features, see docs/accuracy.md.
        baseline: `position` takes from each patch the score that good ones usually have at its place,
            see `baseline.RunningBaseline`; `none` does not (the paper).
        neighbors: K of Eq. 5, and how many matches a query can show.
        sigma_px: standard deviation of the Gaussian over the map, in network pixels.
        false_alarm_rate: share of good images that may score above the threshold.
    """

    patch_score: PatchScore = "nearest"
    baseline: Baseline = "position"
    neighbors: int = 3
    sigma_px: float = 4.0
    false_alarm_rate: float = 0.05

    def __post_init__(self) -> None:
        _require(
            self.patch_score in get_args(PatchScore),
            "patch_score",
            f"one of {get_args(PatchScore)}",
            self.patch_score,
        )
        _require(
            self.baseline in get_args(Baseline), "baseline", f"one of {get_args(Baseline)}", self.baseline
        )
        _require(self.neighbors >= 1, "neighbors (K)", "1 or more", self.neighbors)
        _require(0 <= self.sigma_px < 1000, "sigma_px", "from 0 to below 1,000", self.sigma_px)
        _require(0 < self.false_alarm_rate < 1, "false_alarm_rate", "between 0 and 1", self.false_alarm_rate)


@dataclass(frozen=True, kw_only=True)
class ModelSpec(_Spec):
    """Everything that decides a model, but for the images and the weights.

    Attributes:
        held_out: share of the good images kept from bank and training, for the threshold.
        seed: of the hold-out, the initialisation, k-means and the order of training.
    """

    preset: PresetName = "recommended"
    features: FeatureSpec = field(default_factory=FeatureSpec)
    descriptor: DescriptorSpec = field(default_factory=DescriptorSpec)
    bank: BankSpec = field(default_factory=BankSpec)
    index: IndexSpec = field(default_factory=IndexSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    score: ScoreSpec = field(default_factory=ScoreSpec)
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.held_out < 1, "held_out", "a share in [0, 1)", self.held_out)
        _require(0 <= self.seed <= LARGEST_SEED, "seed", f"from 0 to {LARGEST_SEED}", self.seed)
        _require(
            self.features.geometry != "letterbox" or self.bank.method not in ("ema", "mean"),
            "bank method with a letterbox",
            "neither 'ema' nor 'mean'",
            self.bank.method,
            "position banks need whole grids; use --method hybrid or another --geometry",
        )
        if not self.bank.counts_all_patches:
            self.check_memories(self.bank.memories(self.features.patches_per_image))

    def check_memories(self, memories: int) -> None:
        """Whether a bank of M = `memories` can be made and searched with these settings.

        Raises:
            SpecError: it cannot.
        """
        patches = self.features.patches_per_image
        _require(
            self.bank.method not in ("ema", "mean") or memories <= patches,
            f"bank size with method '{self.bank.method}'",
            f"at most h*w = {patches}",
            memories,
            "ask for fewer memories, or use --method hybrid",
        )
        _require(
            self.score.neighbors <= memories,
            "neighbors (K)",
            f"at most the bank's {memories} memories",
            self.score.neighbors,
            "ask for fewer neighbours or a larger bank",
        )
