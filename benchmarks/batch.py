"""Batch scoring, files to Parquet, as a share of the backbone's own speed, and against anomalib's CFA.

    python -m benchmarks.batch [--images 256] [--rounds 3] [--without compiled] [--json FILE]
    python -m benchmarks.batch --anomalib-python /path/to/env/bin/python

Made-up images with a sensor's grain, 300 px PNG and 1,024 px JPEG (350 kB) apart, go through `score_folder`: read in worker processes,
scored, written. The model is a wide_resnet50_2 with random weights (speed does not depend on them), built
at gamma 1/4: 784 memories of 448 dimensions. `backbone` is its forward pass alone, fp32, on one batch that
is there already. All are timed in turn, round by round, in one run; a ratio is the median over rounds.

A rate counts from the first batch that is scored to the last file that is written: what a run of millions
comes to. `start` is the time before that, mostly of the worker processes; the model is loaded, and compiled,
before. `waits` are the shares of a run in which scoring waited for images and for what it writes.

anomalib is fed by its own dataset and torch's loader, in an environment of its own
(benchmarks/batch_elsewhere.py); it too is timed after its first batch, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# A worker process imports this module, too: what it does not need is imported where it is used.
if TYPE_CHECKING:
    from cfa_index import ModelBundle

BACKBONE = "wide_resnet50_2"
GAMMA = 0.25
KINDS = {"png": 300, "jpg": 1024}
"""Side of the square images in pixels."""
TARGETS = {
    ("fp32", "backbone"): 0.65,
    ("bf16", "fp32"): 1.8,
    ("fp32", "anomalib"): 1.8,
    ("bf16", "anomalib"): 3.0,
}
"""Least ratio of the first to the second; of bf16, compiled or not, the better one counts."""
_DIFFERENT_IMAGES = 32
_BUILD_IMAGES = 16
_JPEG_QUALITY = 90
_GRAIN = 8.0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One timed run.

    Attributes:
        images_per_s: after the first batch.
        start_s: seconds until then.
        wait_read, wait_write: shares of the run; None where nobody counts them.
    """

    images_per_s: float
    start_s: float = 0.0
    wait_read: float | None = None
    wait_write: float | None = None


def write_images(folder: Path, kind: str, count: int) -> Path:
    """`count` files of one kind in a folder of their own, no more than `_DIFFERENT_IMAGES` of them different."""
    import numpy as np
    from PIL import Image

    from benchmarks.stages import made_up_image

    target = folder / kind
    target.mkdir()
    for number in range(count):
        file = target / f"{number:06d}.{kind}"
        if number < _DIFFERENT_IMAGES:
            grey = np.asarray(made_up_image(number, KINDS[kind]), dtype=np.float32)
            grain = np.random.default_rng(number).normal(0, _GRAIN, (*grey.shape[:2], 1))
            pixels = (grey + grain).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(file, quality=_JPEG_QUALITY)
        else:
            shutil.copyfile(target / f"{number % _DIFFERENT_IMAGES:06d}.{kind}", file)
    return target


def build_model(folder: Path, images: list[Path], seed: int) -> Path:
    """A generation at `GAMMA` on a few images; otherwise with the default settings."""
    import torch

    from cfa_index import (
        BankSpec,
        DescriptorSpec,
        FeatureSpec,
        GoodImages,
        ModelSpec,
        build,
        load_backbone,
    )

    spec = ModelSpec(
        features=FeatureSpec(backbone=BACKBONE, strides=(4, 8, 16)),
        descriptor=DescriptorSpec(gamma_d=GAMMA),
        bank=BankSpec(size=None, gamma_c=GAMMA),
        seed=seed,
    )
    built = build(
        GoodImages(category="made-up", source=images[0].parent, images=images),
        spec,
        backbone=load_backbone(BACKBONE, spec.features.strides, weights="random", seed=seed),
        models_dir=folder / "models",
        features_dir=folder / "features",
        device=torch.device("cpu"),
    )
    return built.path


def backbone_rate(bundle: ModelBundle, images: int, batch: int) -> Rate:
    """Its forward pass alone."""
    import torch

    size_px = bundle.manifest.spec.features.size_px
    pixels = torch.randint(0, 256, (batch, 3, size_px, size_px), dtype=torch.uint8)
    times = max(1, images // batch)
    with torch.inference_mode():
        bundle.backbone.levels(pixels)
        started = time.perf_counter()
        for _ in range(times):
            bundle.backbone.levels(pixels)
    return Rate(images_per_s=times * batch / (time.perf_counter() - started))


def folder_rate(bundle: ModelBundle, folder: Path, output: Path, *, batch: int, workers: int) -> Rate:
    """`score_folder` of all files, into a target that is deleted afterwards."""
    from cfa_index import Event, StageAdvanced, score_folder

    first: list[float] = []
    done = 0

    def listen(event: Event) -> None:
        nonlocal done
        if isinstance(event, StageAdvanced) and event.stage == "score":
            done += event.steps
            if done >= batch and not first:
                first.append(time.perf_counter())

    started = time.perf_counter()
    report = score_folder(bundle, folder, output, batch_size=batch, workers=workers, listener=listen)
    ended = time.perf_counter()
    shutil.rmtree(output)
    assert report.rejected == 0
    return Rate(
        images_per_s=(report.images - batch) / (ended - first[0]),
        start_s=first[0] - started,
        wait_read=report.wait_read,
        wait_write=report.wait_write,
    )


def anomalib_rate(python: Path, folder: Path, *, batch: int, threads: int, workers: int) -> Rate:
    """anomalib's CFA on the same files, in its own environment.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    script = Path(__file__).with_name("batch_elsewhere.py")
    settings = [str(folder), str(batch), str(threads), str(workers), str(round(1 / GAMMA))]
    done = subprocess.run(
        [python, script, *settings],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return Rate(**json.loads(done.stdout.splitlines()[-1]))


def in_turn(jobs: dict[str, Callable[[], Rate]], rounds: int) -> dict[str, list[Rate]]:
    """Each job's rates, called in turn, `rounds` times."""
    rates: dict[str, list[Rate]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            rates[name].append(job())
    return rates


def ratio(rates: dict[str, list[Rate]], one: str, other: str) -> float:
    """Median over rounds of one's throughput over another's."""
    pairs = zip(rates[one], rates[other], strict=True)
    return statistics.median(a.images_per_s / b.images_per_s for a, b in pairs)


def table(rates: dict[str, list[Rate]]) -> str:
    """A line a job, its ratios to the backbone, to fp32 and to anomalib."""
    against = [name for name in ("backbone", "fp32", "anomalib") if name in rates]
    lines = [
        f"{'':>16} {'images/s':>9} " + " ".join(f"{'x ' + name:>11}" for name in against) + "  start waits"
    ]
    for name, runs in rates.items():
        ratios = " ".join(f"{ratio(rates, name, other):11.2f}" for other in against)
        waits = [(run.wait_read, run.wait_write) for run in runs if run.wait_read is not None]
        shown = " ".join(
            f"{100 * statistics.median(w or 0 for w in one):.0f}%" for one in zip(*waits, strict=True)
        )
        speed = statistics.median(run.images_per_s for run in runs)
        start = statistics.median(run.start_s for run in runs)
        lines.append(f"{name:>16} {speed:9.2f} {ratios} {start:5.1f}s {shown}")
    return "\n".join(lines)


def verdicts(rates: dict[str, list[Rate]]) -> list[str]:
    """Each target that was measured, and whether it is met."""
    lines = []
    for (one, other), least in TARGETS.items():
        names = [name for name in rates if name.split(" ")[0] == one]
        if not names or other not in rates:
            continue
        reached = max(ratio(rates, name, other) for name in names)
        verdict = "met" if reached >= least else "MISSED"
        lines.append(f"{one} at least {least} x {other}: {reached:.2f}, {verdict}")
    return lines


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256, help="files of each kind, at least two batches")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="default: both")
    parser.add_argument("--without", action="append", default=[], choices=["bf16", "compiled"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes that read images; 0 for threads")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--anomalib-python", type=Path, help="of an environment with anomalib")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    from benchmarks.machine import describe
    from cfa_index import ModelBundle, reuse_freed_memory, set_threads

    set_threads(given.threads)
    reuse_freed_memory()
    print(
        describe(
            given.seed,
            backbone=BACKBONE,
            gamma=GAMMA,
            images=given.images,
            batch=given.batch,
            workers=given.workers,
            rounds=given.rounds,
        )
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = given.kind or list(KINDS)
        folders = {kind: write_images(folder, kind, given.images) for kind in kinds}
        images = sorted(next(iter(folders.values())).iterdir())
        path = build_model(folder, images[:_BUILD_IMAGES], given.seed)
        bundles = {"fp32": ModelBundle.load(path)}
        if "bf16" not in given.without:
            bundles["bf16"] = ModelBundle.load(path, precision="bf16")
            if "compiled" not in given.without:
                bundles["bf16 compiled"] = ModelBundle.load(path, precision="bf16", compiled=True)
        for bundle in bundles.values():  # compiles
            bundle.score(images[: given.batch], batch_size=given.batch)
        document = {}
        for kind, source in folders.items():
            jobs: dict[str, Callable[[], Rate]] = {
                "backbone": partial(backbone_rate, bundles["fp32"], given.images // 4, given.batch)
            }
            for label, bundle in bundles.items():
                jobs[label] = partial(
                    folder_rate,
                    bundle,
                    source,
                    folder / "scores",
                    batch=given.batch,
                    workers=given.workers,
                )
            if given.anomalib_python:
                jobs["anomalib"] = partial(
                    anomalib_rate,
                    given.anomalib_python,
                    source,
                    batch=given.batch,
                    threads=given.threads,
                    workers=given.workers,
                )
            rates = in_turn(jobs, given.rounds)
            print(f"\n{KINDS[kind]} px {kind}\n{table(rates)}", flush=True)
            print("\n".join(verdicts(rates)), flush=True)
            document[kind] = {label: [asdict(run) for run in runs] for label, runs in rates.items()}
    if given.json:
        given.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
