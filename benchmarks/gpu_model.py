"""Models on a device and what benchmarks.gpu times of them: scoring, a training step, transfers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_clock import Budget, Clock
from benchmarks.paper.published import TABLE_6
from cfa_index import (
    Backbone,
    DescriptorSpec,
    FeatureSpec,
    Frame,
    MemoryBank,
    PatchDescriptor,
    Scorer,
    ScoreSpec,
    Trainer,
    TrainSpec,
    backbone_entry,
    frame_of,
    initial_descriptor,
    load_backbone,
    multiplies_bf16,
)
from cfa_index.errors import CfaIndexError
from cfa_index.specs import Precision

PAPER_SCORE = ScoreSpec(patch_score="certainty", baseline="none")
"""Eq. 5 with K = 3."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model of random weights on one device; speed does not depend on them.

    Attributes:
        gamma: gamma_c = gamma_d, as a fraction.
        features: its settings.
        backbone, phi, bank, scorer: its parts; the bank's memories are patches of noise.
    """

    gamma: str
    features: FeatureSpec
    backbone: Backbone
    phi: PatchDescriptor
    bank: MemoryBank
    scorer: Scorer

    def pixels(self, images: int, seed: int) -> Tensor:
        """Noise, uint8 (images, 3, S, S) on the host."""
        return noise(images, self.features.size_px, seed)

    def frames(self, images: int) -> list[Frame]:
        """Of images that fill their square."""
        return [frame_of(self.features.size_px, self.features.size_px, self.features)] * images

    @property
    def shape(self) -> str:
        """M x D'."""
        return f"{len(self.bank):,} x {self.bank.tensor.shape[1]}"


def noise(images: int, size_px: int, seed: int) -> Tensor:
    """uint8 (images, 3, S, S) on the host."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


def make_case(backbone: Backbone, features: FeatureSpec, gamma: str, device: torch.device, seed: int) -> Case:
    """A model as the paper's over a backbone that is on the device."""
    ratio = float(Fraction(gamma))
    spec = DescriptorSpec(
        init="he", gamma_d=ratio, standardise=False, expansion=backbone_entry(features.backbone).expansion
    )
    phi = initial_descriptor(spec, backbone.channels, None, seed=seed).to(device)
    with torch.inference_mode():
        levels = [level.float() for level in backbone.pyramid(noise(1, features.size_px, seed).to(device))]
        patches = phi.folded()(levels)[0]
        memories = patches[: max(1, round(ratio * features.patches_per_image))].cpu().numpy().copy()
    bank = MemoryBank(memories, device)
    scorer = Scorer(backbone, phi, bank, features=features, score=PAPER_SCORE)
    return Case(gamma=gamma, features=features, backbone=backbone, phi=phi, bank=bank, scorer=scorer)


def on_device(
    features: FeatureSpec, precision: Precision, device: torch.device, seed: int, *, compiled: bool = False
) -> Backbone:
    """A backbone with random weights. Raises WeightsError where its package is missing."""
    backbone = load_backbone(
        features.backbone, features.strides, size_px=features.size_px, weights="random", seed=seed
    )
    return backbone.to(device).for_inference(precision, compiled=compiled)


def inference(job: Callable[[], object]) -> Callable[[], object]:
    """The job without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return job()

    return run


@dataclass(frozen=True, kw_only=True)
class ThroughputRow:
    """A backbone at one gamma and precision; images a second.

    Attributes:
        backbone, gamma, precision, bank: what was timed.
        alone: the network's forward pass, uint8 pixels on the device.
        whole: pixels on the device to maps and scores on the device.
        from_host: pixels in pinned memory to scores on the host, one batch after another.
        share: `whole` as a share of `alone`, in turn.
        theirs: images a second in the paper's Table 6, on a Quadro RTX 5000; None where it has none.
    """

    backbone: str
    gamma: str
    precision: Precision
    bank: str
    alone: float
    whole: float
    from_host: float
    share: float
    theirs: int | None


def measure_throughput(
    clock: Clock, budget: Budget, plan: Sequence[tuple[FeatureSpec, Sequence[str]]], *, batch: int, seed: int
) -> list[ThroughputRow]:
    """Whole inference of some backbones, each at some gammas, in fp32 and in bf16."""
    rows = []
    device = clock.device
    for features, gammas in plan:
        for precision in precisions_of(device, budget):
            name = f"{features.backbone}, {precision}"
            if not budget.allows(name):
                continue
            try:
                backbone = on_device(features, precision, device, seed)
            except CfaIndexError as error:
                budget.skip(name, str(error))
                continue
            for gamma in gammas:
                case = make_case(backbone, features, gamma, device, seed)
                rows.append(_throughput(clock, case, precision, batch, seed))
    return rows


def precisions_of(device: torch.device, budget: Budget) -> list[Precision]:
    """fp32, and bf16 where a card multiplies it; a CPU may imitate it, since nothing is claimed of one."""
    if device.type == "cpu" or multiplies_bf16(device):
        return ["fp32", "bf16"]
    budget.skip("bf16", f"{device} does not multiply it")
    return ["fp32"]


def _throughput(clock: Clock, case: Case, precision: Precision, batch: int, seed: int) -> ThroughputRow:
    host = pinned(case.pixels(batch, seed), clock.device)
    pixels, frames = host.to(clock.device), case.frames(batch)
    times = clock.in_turn(
        {
            "alone": inference(partial(case.backbone.levels, pixels)),
            "whole": partial(case.scorer.score_pixels, pixels, frames),
            "from host": lambda: case.scorer.score_pixels(host, frames).scores.cpu(),
        }
    )
    alone, whole = times["alone"], times["whole"]
    return ThroughputRow(
        backbone=case.features.backbone,
        gamma=case.gamma,
        precision=precision,
        bank=case.shape,
        alone=alone.rate(batch),
        whole=whole.rate(batch),
        from_host=times["from host"].rate(batch),
        share=alone.median_s / whole.median_s,
        theirs=TABLE_6[case.gamma][1] if case.features.backbone == "wide_resnet50_2" else None,
    )


def pinned(host: Tensor, device: torch.device) -> Tensor:
    """The same in memory that a card reads by itself; as it is without one."""
    return host.pin_memory() if device.type == "cuda" else host


def throughput_table(rows: Sequence[ThroughputRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| backbone | gamma | bank | precision | network alone, images/s | whole, images/s | whole / network | "
        "from and to the host, images/s | the paper's, on its Quadro RTX 5000 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.backbone} | {row.gamma} | {row.bank} | {row.precision} | {row.alone:.4g} | {row.whole:.4g} | "
        f"{row.share:.2f} | {row.from_host:.4g} | {'' if row.theirs is None else f'theirs: {row.theirs}'} |"
        for row in rows
    ]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A training step.

    Attributes:
        gamma, bank, batch: what was timed.
        step_ms: from levels on the device to the changed phi.
        from_host_ms: from float16 levels in pinned memory, as a store gives them.
        forward_ms: the network's forward pass of the same batch, which training does not need: its features
            are stored.
        products_ms: the bare matrix products of a step: phi, its gradient, the search.
        waits: of the host for the card in a step, as torch counts them; None without a card.
    """

    gamma: str
    bank: str
    batch: int
    step_ms: float
    from_host_ms: float
    forward_ms: float
    products_ms: float
    waits: int | None


def measure_steps(
    clock: Clock, budget: Budget, features: FeatureSpec, gammas: Sequence[str], *, batch: int, seed: int
) -> list[StepRow]:
    """A training step over a backbone at some gammas."""
    backbone = on_device(features, "fp32", clock.device, seed)
    rows = []
    for gamma in gammas:
        if budget.allows(f"gamma {gamma}"):
            case = make_case(backbone, features, gamma, clock.device, seed)
            rows.append(_step(clock, case, batch, seed))
    return rows


def trainer_of(case: Case, batch: int) -> Trainer:
    """With the settings of the paper."""
    return Trainer(case.phi, case.bank, TrainSpec(batch_size=batch, radius=1e-5), radius=1e-5)


def _step(clock: Clock, case: Case, batch: int, seed: int) -> StepRow:
    device = clock.device
    pixels = case.pixels(batch, seed).to(device)
    levels = case.backbone.pyramid(pixels)
    stored = [pinned(level.half().cpu(), device) for level in levels]
    trainer = trainer_of(case, batch)
    step = partial(trainer.step, levels)
    times = clock.in_turn(
        {
            "forward": inference(partial(case.backbone.levels, pixels)),
            "step": step,
            "from host": lambda: trainer.step([level.to(device, non_blocking=True) for level in stored]),
            "products": inference(_products(case, levels)),
        }
    )
    return StepRow(
        gamma=case.gamma,
        bank=case.shape,
        batch=batch,
        step_ms=times["step"].ms,
        from_host_ms=times["from host"].ms,
        forward_ms=times["forward"].ms,
        products_ms=times["products"].ms,
        waits=clock.waits(step),
    )


def _products(case: Case, levels: Sequence[Tensor]) -> Callable[[], None]:
    """What a step has to multiply: each level by its part of phi, the gradients by each level, patches by the bank."""
    width = case.bank.tensor.shape[1]
    cells = [level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels]  # (B h_l w_l, C_l)
    weights = [torch.ones(part.shape[1], width, device=part.device) for part in cells]
    gradients = [torch.ones(len(part), width, device=part.device) for part in cells]
    patches, memories = torch.ones(len(cells[0]), width, device=levels[0].device), case.bank.tensor.T

    def run() -> None:
        for part, weight, gradient in zip(cells, weights, gradients, strict=True):
            torch.mm(part, weight)
            torch.mm(gradient.T, part)
        torch.mm(patches, memories)

    return run


def step_table(rows: Sequence[StepRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| gamma | bank | batch | step, ms | / forward pass | / bare products | with copies from the host | "
        "host waits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.gamma} | {row.bank} | {row.batch} | {row.step_ms:.3g} | {row.step_ms / row.forward_ms:.2f} | "
        f"{row.step_ms / row.products_ms:.2f} | {row.from_host_ms / row.step_ms:.2f} x | "
        f"{'no card' if row.waits is None else row.waits} |"
        for row in rows
    ]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """Batch scoring from decoded pixels, copies and scoring overlapped as `score` does it.

    Attributes:
        backbone, mode: of the default model; mode is the precision, and whether the network is compiled.
        images, batch: how many, and how many at a time.
        resident: images a second of pixels that are on the device already, their maps brought to the host.
        pinned, pageable: images a second from the host's memory; what is pageable is copied into pinned memory
            first.
        copies_gbytes_per_s: of the same pixels copied from pinned memory, with nothing else to do.
    """

    backbone: str
    mode: str
    images: int
    batch: int
    resident: float
    pinned: float
    pageable: float
    copies_gbytes_per_s: float

    def cost(self, rate: float) -> float:
        """Share of the time that copying the pixels adds at such a rate; what overlaps adds nothing."""
        return 1 - rate / self.resident


def measure_batches(
    clock: Clock,
    budget: Budget,
    features: FeatureSpec,
    *,
    batches: int,
    batch: int,
    compiled: bool,
    seed: int,
) -> list[BatchRow]:
    """The same images from three kinds of memory, in turn; with `compiled` by the compiled networks, too."""
    rows, device = [], clock.device
    modes = [(precision, False) for precision in precisions_of(device, budget)]
    modes += [(precision, True) for precision, _ in modes if compiled]
    for precision, is_compiled in modes:
        mode = f"{precision} compiled" if is_compiled else precision
        if not budget.allows(mode):
            continue
        backbone = on_device(features, precision, device, seed, compiled=is_compiled)
        case = make_case(backbone, features, "1", device, seed)
        pageable = [case.pixels(batch, seed + number) for number in range(batches)]
        held = [pinned(pixels, device) for pixels in pageable]
        resident = [pixels.to(device) for pixels in held]
        times = clock.in_turn(
            {
                "resident": partial(_score_all, case, resident),
                "pinned": partial(_score_all, case, held),
                "pageable": partial(_score_all, case, pageable),
                "copies": partial(_copy_all, held, device),
            }
        )
        images = batches * batch
        rows.append(
            BatchRow(
                backbone=features.backbone,
                mode=mode,
                images=images,
                batch=batch,
                resident=times["resident"].rate(images),
                pinned=times["pinned"].rate(images),
                pageable=times["pageable"].rate(images),
                copies_gbytes_per_s=times["copies"].rate(sum(pixels.nbytes for pixels in held)) / 1e9,
            )
        )
    return rows


def _score_all(case: Case, batches: Sequence[Tensor]) -> None:
    """Maps of all batches on the host, each read while the next is computed."""
    downloads, frames = case.scorer.downloads, case.frames(len(batches[0]))
    queued = (downloads.start([case.scorer.score_pixels(pixels, frames).maps]) for pixels in batches)
    for pending in downloads.behind(queued):
        pending.result()


def _copy_all(batches: Sequence[Tensor], device: torch.device) -> None:
    for pixels in batches:
        pixels.to(device, non_blocking=True)


def batch_table(rows: Sequence[BatchRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| backbone | mode | images, batch | pixels on the card, images/s | pinned | share of time for copies | "
        "pageable | share of time for copies | copies alone, GB/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.backbone} | {row.mode} | {row.images}, {row.batch} | {row.resident:.4g} | {row.pinned:.4g} | "
        f"{row.cost(row.pinned):.1%} | {row.pageable:.4g} | {row.cost(row.pageable):.1%} | "
        f"{row.copies_gbytes_per_s:.3g} |"
        for row in rows
    ]
    return "\n".join(lines)
