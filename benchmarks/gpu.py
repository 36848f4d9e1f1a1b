"""What a card does: Table 6 of the paper, bank size, training, batch scoring, the roofline of search.

    python -m benchmarks.gpu [--device cuda] [--only a,b,c,d,e,f,g] [--json FILE]
    python -m benchmarks.gpu --quick
    python -m benchmarks.gpu --device cpu

a  Table 6: images a second end to end beside the network's forward pass alone, for every backbone, fp32 and
   bf16; wide_resnet50_2 at the paper's four gammas. The paper's figures are theirs, on their card.
b  bank size, 10^3 to 10^7 memories, against throughput: Flat in fp32 and with fp16 storage, and inverted files, at
   the default model's width and at that of EfficientNet-Lite0.
c  a training step: ratio to the network's forward pass of the same batch, and to its bare matrix products; how
   often the host waits for the card.
d  batch scoring from decoded pixels on the host, pinned and pageable, and what the copies cost.
e  the roofline of search: achieved over attainable, against a copy and matrix products of the same run.
f  operations that a training step and a batch of scoring ask torch for: on a card each is a launch.
g  JPEGs decoded on the card beside a core of the host: whether `--decode card` pays.

Under 8 minutes on a card: a section begins nothing more when its time is spent, and says what it left out. Weights
and pixels are random: speed does not depend on them. Times are CUDA events, medians of measurements in turn after a
warm-up; a ratio stands beside its reference of the same run. On a CPU, and with --quick, the same code runs on
tiny sizes: that proves the way and measures nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_case import make_case, on_device
from benchmarks.gpu_clock import Budget, Clock, describe_device
from benchmarks.gpu_decoding import decode_table, measure_decoding
from benchmarks.gpu_operations import OperationRow, count_operations, operation_table
from benchmarks.gpu_roofline import measure_peaks, measure_roofline, roofline_table
from benchmarks.gpu_scoring import batch_table, measure_batches, measure_throughput, throughput_table
from benchmarks.gpu_sizes import SizePlan, measure_sizes, size_table
from benchmarks.gpu_training import measure_steps, step_table, trainer_of
from benchmarks.paper.published import TABLE_6
from cfa_index import FeatureSpec, backbone_names, resolve_device, set_threads, usable_cores, write_json
from cfa_index.errors import CfaIndexError

PAPER_STRIDES = (4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is.

    Attributes:
        networks: of a, each with its gammas; the first of them is that of c, d and f, too.
        size_px: side of the images.
        batch: images a forward pass, of a and d; a training step has 4.
        batches: of d.
        memories, widths: of b.
        patches, images: of b, of an image and how many are searched for at a time.
        shapes: (n, M, D') of e.
        copy_bytes, side: of e's copy and square product.
        jpegs_px, jpegs: of g, sides of its images and how many are decoded at a time.
        repeats: measurements of each.
    """

    networks: Sequence[tuple[str, Sequence[str]]]
    size_px: int
    batch: int
    batches: int
    memories: Sequence[int]
    widths: Sequence[int]
    patches: int
    images: int
    shapes: Sequence[tuple[int, int, int]]
    copy_bytes: int
    side: int
    jpegs_px: Sequence[int]
    jpegs: int
    repeats: int


FULL = Sizes(
    networks=[(name, tuple(TABLE_6) if name == "wide_resnet50_2" else ("1/4",)) for name in backbone_names()],
    size_px=224,
    batch=32,
    batches=16,
    memories=[10**power for power in range(3, 8)],
    widths=[152, 1536],
    patches=784,
    images=8,
    shapes=[
        (784, 3136, 1536),
        (3136, 3136, 1792),
        (100_352, 784, 448),
        (25_088, 3136, 1536),
        (784, 1_000_000, 152),
        (25_088, 1_000_000, 152),
    ],
    copy_bytes=1 << 30,
    side=8192,
    jpegs_px=[300, 1024],
    jpegs=32,
    repeats=5,
)
TINY = Sizes(
    networks=[("resnet18", ("1/4",))],
    size_px=32,
    batch=2,
    batches=2,
    memories=[100, 200],
    widths=[8],
    patches=16,
    images=2,
    shapes=[(16, 100, 8)],
    copy_bytes=1 << 12,
    side=16,
    jpegs_px=[40],
    jpegs=2,
    repeats=1,
)
SECONDS = {"a": 130.0, "b": 160.0, "c": 30.0, "d": 50.0, "e": 40.0, "f": 10.0, "g": 20.0}
"""Budget of each section: 440 s together, and importing and making networks are in it."""
STEP_BATCH = 4
"""Images of a training step, as in the paper."""
_Measured = tuple[Sequence[Any], str]
"""Rows, dataclasses all, and their table."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What became of one.

    Attributes:
        rows: its figures, for JSON.
        text: the same for a reader.
        left_out: in words.
    """

    rows: list[dict[str, Any]]
    text: str
    left_out: list[str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the benchmark.

    Attributes:
        device, sizes, seed: as it is to be.
        compiled: whether d has compiled networks, too.
    """

    device: torch.device
    sizes: Sizes
    seed: int = 0
    compiled: bool = False

    def section(self, letter: str) -> Section:
        """Measure one; what a card has no room for, or what fails, is told in it and ends nothing else."""
        title, measure = {
            "a": ("Table 6: throughput", self._throughput),
            "b": ("bank size against throughput", self._bank_sizes),
            "c": ("training step", self._steps),
            "d": ("batch scoring from the host", self._batches),
            "e": ("roofline of search", self._roofline),
            "f": ("operations", self._operations),
            "g": ("JPEGs decoded", self._decoding),
        }[letter]
        budget = Budget(SECONDS[letter])
        rows: Sequence[Any] = []
        table = "nothing was measured"
        try:
            rows, table = measure(budget)
        except (CfaIndexError, torch.OutOfMemoryError) as error:
            budget.skip("all of it", " ".join(str(error).split()))
        lines = [f"{letter}: {title}, {budget.spent():.1f} s", table]
        lines += [f"left out: {line}" for line in budget.left_out]
        return Section(rows=[asdict(row) for row in rows], text="\n".join(lines), left_out=budget.left_out)

    @property
    def _clock(self) -> Clock:
        return Clock(self.device, self.sizes.repeats)

    def _features(self, backbone: str) -> FeatureSpec:
        return FeatureSpec(backbone=backbone, strides=PAPER_STRIDES, size_px=self.sizes.size_px)

    def _throughput(self, budget: Budget) -> _Measured:
        networks = [(self._features(name), gammas) for name, gammas in self.sizes.networks]
        rows = measure_throughput(self._clock, budget, networks, batch=self.sizes.batch, seed=self.seed)
        return rows, throughput_table(rows)

    def _bank_sizes(self, budget: Budget) -> _Measured:
        sizes = self.sizes
        plan = SizePlan(
            sizes=sizes.memories,
            widths=sizes.widths,
            patches=sizes.patches,
            images=sizes.images,
            seed=self.seed,
        )
        rows = measure_sizes(self._clock, budget, plan)
        return rows, size_table(rows)

    def _steps(self, budget: Budget) -> _Measured:
        name, gammas = self.sizes.networks[0]
        rows = measure_steps(
            self._clock, budget, self._features(name), gammas, batch=STEP_BATCH, seed=self.seed
        )
        return rows, step_table(rows)

    def _batches(self, budget: Budget) -> _Measured:
        sizes = self.sizes
        rows = measure_batches(
            self._clock,
            budget,
            FeatureSpec(backbone=sizes.networks[0][0], size_px=sizes.size_px),
            batches=sizes.batches,
            batch=sizes.batch,
            compiled=self.compiled,
            seed=self.seed,
        )
        return rows, batch_table(rows)

    def _roofline(self, budget: Budget) -> _Measured:
        sizes = self.sizes
        peaks = measure_peaks(self._clock, copy_bytes=sizes.copy_bytes, side=sizes.side)
        rows = measure_roofline(self._clock, budget, peaks, sizes.shapes, seed=self.seed)
        return [peaks, *rows], roofline_table(peaks, rows)

    def _operations(self, budget: Budget) -> _Measured:
        del budget
        name, gammas = self.sizes.networks[0]
        rows = operations_of(self._features(name), gammas[-1], self.device, batch=STEP_BATCH, seed=self.seed)
        return rows, operation_table(rows)

    def _decoding(self, budget: Budget) -> _Measured:
        sizes = self.sizes
        features = self._features(sizes.networks[0][0])
        rows = measure_decoding(self._clock, budget, features, sizes.jpegs_px, images=sizes.jpegs)
        return rows, decode_table(rows)


def operations_of(
    features: FeatureSpec, gamma: str, device: torch.device, *, batch: int, seed: int
) -> list[OperationRow]:
    """What scoring and training ask torch for."""
    case = make_case(on_device(features, "fp32", device, seed), features, gamma, device, seed)
    pixels, frames = case.pixels(batch, seed).to(device), case.frames(batch)
    levels = case.backbone.pyramid(pixels)
    return count_operations(
        {
            "network and pooling": partial(case.backbone.pyramid, pixels),
            "levels to scores": partial(case.scorer.score_pyramid, levels, frames),
            "training step": partial(trainer_of(case, batch).step, levels),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--only", default=",".join(SECONDS), help="some of them [default: all]")
    parser.add_argument("--compile", action="store_true", help="compile the networks of d, too; minutes more")
    parser.add_argument("--quick", action="store_true", help="tiny sizes on a card, too")
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), help="default: all; they build indexes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    only = given.only.split(",")
    if unknown := set(only) - set(SECONDS):
        parser.error(f"--only takes some of {','.join(SECONDS)}, not {', '.join(sorted(unknown))}")
    set_threads(given.threads)
    device = resolve_device(given.device)
    tiny = given.quick or device.type == "cpu"
    header = describe_device(device, given.seed, only=given.only, tiny=tiny, threads=given.threads)
    print(header, flush=True)
    run = Run(device=device, sizes=TINY if tiny else FULL, seed=given.seed, compiled=given.compile)
    results: dict[str, Any] = {"header": header}
    for letter in only:
        section = run.section(letter)
        print("\n" + section.text, flush=True)
        results[letter] = {"rows": section.rows, "left_out": section.left_out}
        if given.json:  # after each: what fails on a card may end the process
            write_json(given.json, results)


if __name__ == "__main__":
    main()
