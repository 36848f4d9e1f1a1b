"""A night of batch scoring: memory and time an image must be at the end what they were at the start.

    python -m benchmarks.night [--images 100000] [--precision fp32] [--workers 2]

Small PNG files with different names (hard links to a few), a thousand a folder, go through `score_folder` with
EfficientNet-Lite0 at 64 px and random weights. Memory is the resident size of this process and of its workers,
sampled twice a second; the model is built by another process. The first tenth of the run is the start-up;
the second tenth is compared with the last, by the median of the times of a thousand images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import chain, pairwise
from pathlib import Path

# A worker process imports this module, too: what it does not need is imported where it is used.

TIME_TARGET, MEMORY_TARGET = 1.05, 1.05
"""Most at the end for 1 at the start."""
BACKBONE, SIZE_PX = "efficientnet_lite0", 64
_DIFFERENT_IMAGES, _A_FOLDER, _A_STEP = 64, 1000, 1000
_SAMPLES_APART_S = 0.5


def write_night(folder: Path, count: int) -> Path:
    """`count` files, of which `_DIFFERENT_IMAGES` are different; gives the folder of the latter."""
    from benchmarks.stages import made_up_image

    originals = folder / "originals"
    originals.mkdir()
    files = [originals / f"{number:02d}.png" for number in range(_DIFFERENT_IMAGES)]
    for number, file in enumerate(files):
        made_up_image(number, SIZE_PX).save(file)
    for number in range(count):
        part = folder / "night" / f"{number // _A_FOLDER:04d}"
        if number % _A_FOLDER == 0:
            part.mkdir(parents=True)
        (part / f"{number:07d}.png").hardlink_to(files[number % len(files)])
    return originals


def build_model(folder: Path, normals: Path) -> Path:
    """A model of the originals, made by a process of its own."""
    arguments = [
        *("build", "--normals", str(normals), "--category", "night", "--weights", "random"),
        *("--backbone", BACKBONE, "--size", str(SIZE_PX), "--bank-size", "256"),
        *("--models-dir", str(folder / "models"), "--features-dir", str(folder / "features")),
    ]
    script = "import sys; from cfa_index_cli.main import app; app(sys.argv[1:])"
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    return folder / "models" / "night"


def resident_mib() -> float:
    """Resident size of this process and its children, those that run."""
    own = os.getpid()
    children = [_words(file) for file in Path(f"/proc/{own}/task").glob("*/children")]
    sizes = [_words(Path(f"/proc/{pid}/statm")) for pid in (str(own), *chain.from_iterable(children))]
    return sum(int(words[1]) for words in sizes if words) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _words(file: Path) -> list[str]:
    """Of a file of a thread or process; none of one that has just ended."""
    try:
        return file.read_text().split()
    except OSError:
        return []


class Sampler:
    """Resident sizes (seconds since the start, MiB) while a `with` lasts."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler")
        self._started = time.perf_counter()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLES_APART_S):
            self.samples.append((time.perf_counter() - self._started, resident_mib()))

    def between(self, start: float, end: float) -> float:
        """Median over a time."""
        found = [mib for at, mib in self.samples if start <= at <= end]
        return statistics.median(found or [self.samples[-1][1]])


def main() -> None:
    """Write, build, score, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000, help="at least 20,000 for steady medians")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()

    from benchmarks.machine import describe
    from cfa_index import (
        Event,
        ModelBundle,
        StageAdvanced,
        reuse_freed_memory,
        score_folder,
        set_threads,
    )

    set_threads(given.threads)
    reuse_freed_memory()
    print(
        describe(
            0,
            backbone=BACKBONE,
            size_px=SIZE_PX,
            images=given.images,
            precision=given.precision,
            batch=given.batch,
            workers=given.workers,
        )
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = ModelBundle.load(
            build_model(folder, write_night(folder, given.images)), precision=given.precision
        )
        done, marks = 0, [(0, 0.0)]

        with Sampler() as sampler:
            started = time.perf_counter()

            def listen(event: Event) -> None:
                nonlocal done
                if isinstance(event, StageAdvanced) and event.stage == "score":
                    done += event.steps
                    if done - marks[-1][0] >= _A_STEP:
                        marks.append((done, time.perf_counter() - started))

            report = score_folder(
                bundle,
                folder / "night",
                folder / "scores",
                batch_size=given.batch,
                workers=given.workers,
                listener=listen,
            )
    assert (report.images, report.rejected) == (given.images, 0)
    steps = list(pairwise(marks))
    a_tenth = max(1, len(steps) // 10)
    first, last = steps[a_tenth : 2 * a_tenth], steps[-a_tenth:]
    times, sizes = [], []
    for label, part in (("second tenth", first), ("last tenth", last)):
        ms = statistics.median(1000 * (end[1] - begin[1]) / (end[0] - begin[0]) for begin, end in part)
        mib = sampler.between(part[0][0][1], part[-1][1][1])
        times.append(ms)
        sizes.append(mib)
        print(f"{label:>12}: {ms:.2f} ms an image, {mib:.0f} MiB")
    print(
        f"{given.images} images in {report.seconds:.0f} s, {given.images / report.seconds:.0f} a second; "
        f"peak {max(mib for _, mib in sampler.samples):.0f} MiB; "
        f"waits: {100 * report.wait_read:.0f}% for images, {100 * report.wait_write:.0f}% for writing"
    )
    for what, pair, most in (("time", times, TIME_TARGET), ("memory", sizes, MEMORY_TARGET)):
        reached = pair[1] / pair[0]
        verdict = "met" if reached <= most else "MISSED"
        print(f"{what} at the end at most {most} x the start's: {reached:.3f}, {verdict}")


if __name__ == "__main__":
    main()
