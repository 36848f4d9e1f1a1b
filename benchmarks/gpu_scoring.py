"""Whole inference beside the network alone, and batch scoring from the host's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_case import Case, inference, make_case, on_device, pinned, precisions_of
from benchmarks.gpu_clock import Budget, Clock
from benchmarks.paper.published import TABLE_6
from cfa_index import FeatureSpec
from cfa_index.errors import CfaIndexError
from cfa_index.specs import Precision


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
