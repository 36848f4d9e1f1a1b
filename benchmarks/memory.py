"""Peak memory of `cfa-index build` at two numbers of images: it must not grow with the folder.

    python -m benchmarks.memory [--images 100 1000] [--backbone wide_resnet50_2]

Each build runs as a process of its own on made-up 300 x 300 images with random weights and the default
settings; the figure is the operating system's largest resident size of that process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.stages import made_up_image

TARGET = 1.10
_DIFFERENT_IMAGES = 50


def peak_of_build(images: int, backbone: str, folder: Path) -> tuple[float, float]:
    """MiB and seconds of one build of `images` images."""
    normals = folder / f"normals-{images}"
    normals.mkdir()
    originals = [made_up_image(number) for number in range(min(images, _DIFFERENT_IMAGES))]
    for number in range(images):
        originals[number % len(originals)].rotate(number % 4 * 90).save(normals / f"{number:05d}.png")
    script = (
        "import resource, sys, time; from cfa_index_cli.main import app; started = time.time()\n"
        "try:\n    app(sys.argv[1:])\n"
        "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.time() - started)"
    )
    arguments = [
        *("build", "--normals", str(normals), "--category", f"n{images}"),
        *("--backbone", backbone, "--weights", "random", "--threads", "2"),
        *("--models-dir", str(folder / "models"), "--features-dir", str(folder / "features")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    peak, seconds = map(float, done.stdout.split()[-2:])
    return peak, seconds


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs=2, default=[100, 1000])
    parser.add_argument("--backbone", default="wide_resnet50_2")
    given = parser.parse_args()
    print(describe(0, backbone=given.backbone, images=given.images))
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        for images in given.images:
            peak, seconds = peak_of_build(images, given.backbone, Path(name))
            peaks.append(peak)
            print(f"{images:6d} images: peak {peak:8.0f} MiB, {seconds:.0f} s")
    print(f"ratio {peaks[1] / peaks[0]:.3f} (target: at most {TARGET})")


if __name__ == "__main__":
    main()
