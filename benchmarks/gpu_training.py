"""A training step beside the network's forward pass and beside its bare matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_case import Case, inference, make_case, on_device, pinned
from benchmarks.gpu_clock import Budget, Clock
from cfa_index import FeatureSpec, Trainer, TrainSpec


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
