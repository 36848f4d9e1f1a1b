"""From facts to the command that suits a machine: looks at nothing itself."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfa_index.workflows.doctor_facts import Graphics, Machine, Measured

GIB = 1 << 30
GOOD_MEMORY = 3 * GIB
"""wide_resnet50_2 takes 1.1 GiB while it is loaded and 15 MiB an image of a batch; below, batches are small."""
BATCH, SMALL_BATCH, CARD_BATCH = 8, 2, 32
PAYS = 1.3
"""A precision is advised from this ratio to fp32 on: it is not free, scores change a little."""
_SPARE = 1.25
"""Workers decode so much faster than scoring takes images, so that it does not wait for them."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The command for this machine.

    Attributes:
        command: as typed, with FOLDER, CATEGORY and OUT to fill in.
        workers, batch_size, precision: in it.
        threads: in it where torch would take more than there are cores; None where it would not.
        images_per_s: expected by kind of file; empty without a measurement.
    """

    command: str
    workers: int
    batch_size: int
    precision: str
    threads: int | None
    images_per_s: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def on_card(graphics: Graphics) -> bool:
    """Whether `--device auto` takes a card: torch and FAISS must both see it."""
    return bool(graphics.torch) and bool(graphics.faiss)


def batch_size_for(machine: Machine) -> int:
    """Images a forward pass: fewer where memory is short, more on a card."""
    if on_card(machine.graphics):
        return CARD_BATCH
    available = machine.memory.available
    return SMALL_BATCH if available is not None and available < GOOD_MEMORY else BATCH


def threads_for(machine: Machine) -> int:
    """Threads of the maths: those that torch would take, but no more than there are cores to use."""
    usable = machine.processor.usable or 1.0
    return max(1, min(machine.threads.torch or 1, math.floor(usable)))


def advise(machine: Machine, measured: Measured | None, output: Path | None = None) -> Advice:
    """The command that suits a machine, and how fast it should be.

    Scoring takes `threads` cores for s images a second and a worker one core for d, so c cores give
    min(s, c / (threads / s + 1 / d)) images a second; a card takes no cores.

    Args:
        machine: what is there.
        measured: None without a measurement; then one worker for four cores, nothing said of speed.
        output: target folder for the command.
    """
    usable = machine.processor.usable or 1.0
    cores = max(1, math.floor(usable))
    threads = threads_for(machine)
    batch_size, precision, card = batch_size_for(machine), "fp32", on_card(machine.graphics)
    workers = max(1, cores - 1) if card else max(1, cores // 4)
    expected: dict[str, float] = {}
    scored = usable_rates(measured.scored_per_s) if measured else {}
    if measured and "fp32" in scored:
        batch_size = measured.batch_size
        if scored.get("bf16", 0.0) >= PAYS * scored["fp32"]:
            precision = "bf16"
        decoded = usable_rates(measured.decoded_per_s)
        taken = 0 if card else measured.threads
        for kind, rate in decoded.items():  # below one core, both were measured in that part of it
            expected[kind] = min(scored[precision], max(1.0, usable) / (taken / scored[precision] + 1 / rate))
        if decoded:
            needed = max(_SPARE * expected[kind] / rate for kind, rate in decoded.items())
            workers = min(cores, max(1, math.ceil(needed)))
    parts = ["cfa-index", "score", "FOLDER", "--category", "CATEGORY"]
    parts += ["-o", shlex.quote(str(output)) if output else "OUT"]
    parts += ["--workers", str(workers), "--batch-size", str(batch_size)]
    if precision != "fp32":
        parts += ["--precision", precision]
    too_many = machine.threads.torch is not None and machine.threads.torch > threads
    if too_many:
        parts += ["--threads", str(threads)]
    return Advice(
        command=" ".join(parts),
        workers=workers,
        batch_size=batch_size,
        precision=precision,
        threads=threads if too_many else None,
        images_per_s=expected,
    )


def usable_rates(rates: Mapping[str, float | None]) -> dict[str, float]:
    """Those that were measured."""
    return {name: rate for name, rate in rates.items() if rate}
