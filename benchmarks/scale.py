"""What a run over many machines is made of, each part alone: the figures behind docs/scale.md.

    python -m benchmarks.scale [--files 100000] [--images 40] [--parts 200] [--pieces 100] [--json FILE]

list: `LocalPlace.walk` over made-up files of one byte. decode: a core's time for one image, from its bytes in memory
to the network's square. parts: Parquet parts of 256 rows, written whole and synced. ray: pieces through Ray Data with
a scoring function that only sleeps, so that what is left is the engine's own; pixels are as large as those of a shard
of 256 images of 224 px (38.5 MB), or none. No network and no GPU is measured here.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.machine import describe
from cfa_index import FeatureSpec, LocalPlace, RayCluster, decode, network_pixels, run_on_ray, write_json

SHARD_IMAGES, SIZE_PX = 256, 224
SHARD_BYTES = SHARD_IMAGES * 3 * SIZE_PX**2
IN_A_FOLDER = 1000


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=40, help="decoded of each kind")
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--pieces", type=int, default=100)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds a piece that scoring takes")
    parser.add_argument("--skip-ray", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(describe(0, files=options.files, pieces=options.pieces, actors=options.actors, sleep=options.sleep))
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        figures |= listing(Path(folder), options.files)
        figures |= decoding(options.images)
        figures |= parts(Path(folder), options.parts)
        if not options.skip_ray:
            for name, payload in (("no pixels", 0), ("38.5 MB of pixels", SHARD_BYTES)):
                seconds, cpu = ray_seconds(
                    Path(folder), options.pieces, options.actors, options.sleep, payload
                )
                figures[f"ray, {name}: pieces/s"] = (options.pieces - 1) / seconds
                figures[f"ray, {name}: ms of the driver's core a piece"] = 1000 * cpu / options.pieces
    for name, value in figures.items():
        print(f"{name:>55}: {value:,.1f}")
    if options.json:
        write_json(options.json, {"schema_version": 1, "figures": figures})


def listing(folder: Path, files: int) -> dict[str, float]:
    """Files a second."""
    root = folder / "files"
    for first in range(0, files, IN_A_FOLDER):
        inside = root / f"{first:08d}"
        inside.mkdir(parents=True)
        for number in range(first, min(first + IN_A_FOLDER, files)):
            (inside / f"{number:08d}.png").write_bytes(b"x")
    started = time.perf_counter()
    found = sum(1 for _ in LocalPlace(root).walk(frozenset({".png"})))
    assert found == files
    return {"list, this disk's cache: files/s": files / (time.perf_counter() - started)}


def decoding(images: int) -> dict[str, float]:
    """Milliseconds of CPU an image, the median; of a thread's own clock, so that other work beside it counts less."""
    draw = np.random.default_rng(0)
    features = FeatureSpec(size_px=SIZE_PX)
    figures: dict[str, float] = {}
    for name, side, kind in (("PNG of 300 px", 300, "PNG"), ("JPEG of 1,024 px", 1024, "JPEG")):
        coarse = Image.fromarray(draw.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + draw.integers(-4, 5, pixels.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, kind)
        times = []
        for _ in range(images):
            started = time.thread_time()
            network_pixels(decode(buffer.getvalue()), features)
            times.append(time.thread_time() - started)
        figures[f"decode, {name}: ms of a core"] = 1000 * statistics.median(times)
    return figures


def parts(folder: Path, count: int) -> dict[str, float]:
    """Parts a second, and the size of one."""
    rows = [
        {
            "image_id": number,
            "uri": f"line-4/2026-11-24/{number:012d}.png",
            "score": number / 7,
            "error": None,
        }
        for number in range(SHARD_IMAGES)
    ]
    place = LocalPlace(folder / "out")
    size = 0
    started = time.perf_counter()
    for number in range(count):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        size = buffer.tell()
        place.write(f"parts/part-{number:08d}.parquet", buffer.getvalue())
    seconds = time.perf_counter() - started
    return {"parts of 256 rows, synced: parts/s": count / seconds, "a part: kB": size / 1000}


@dataclass(frozen=True)
class _Fetch:
    size: int

    def __call__(self, _number: int) -> dict[str, bytes]:
        return {"pixels": bytes(self.size)}


@dataclass(frozen=True)
class _Sleeper:
    seconds: float

    def __call__(self) -> Callable[[int, Any], dict[str, bytes]]:
        def work(_number: int, _payload: Any) -> dict[str, bytes]:
            time.sleep(self.seconds)
            return {"rows": bytes(8000)}

        return work


@dataclass(frozen=True)
class _Save:
    place: LocalPlace

    def __call__(self, number: int, payload: Any) -> int:
        self.place.write(f"{number:08d}", payload["rows"])
        return number


def ray_seconds(folder: Path, pieces: int, actors: int, sleep: float, payload: int) -> tuple[float, float]:
    """From the first piece that was saved to the last, and of the driver's CPU: without Ray's start."""
    times: list[float] = []
    clock: list[float] = []

    def saved(_: int) -> None:
        times.append(time.perf_counter())
        clock.append(time.process_time())

    run_on_ray(
        pieces,
        cluster=RayCluster(actors=actors),
        fetch=_Fetch(payload),
        make_worker=_Sleeper(sleep),
        save=_Save(LocalPlace(folder / f"ray-{payload}")),
        checkpoint=str(folder / f"checkpoint-{payload}"),
        done=(),
        saved=saved,
    )
    return max(times[-1] - times[0], 1e-9), clock[-1] - clock[0]


if __name__ == "__main__":
    main()
