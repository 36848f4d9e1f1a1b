"""Table 1 of the paper, measured: time, memory and bytes of each bank against the number of images.

    python -m benchmarks.complexity [--images 8 16 32 64] [--data elpv] [--json FILE]
    python -m benchmarks.complexity --quick

`seconds` is the way from stored features to a bank (the backbone has run before), `peak` is the growth of
the resident size above what the process held just before, `bank` the bytes that scoring needs. Each cell
is a process of its own, forked from a server that has only imported; it first makes the same bank of two
images, so that no library's start counts, then sets the kernel's mark of the largest resident size back
(/proc/self/clear_refs) and reads it again when the bank is made. An exponent b is the least-squares slope
of log(value) over log(images): value ~ images^b.

The Gaussian is PaDiM's (Defard et al. 2020): mean and covariance at each position of 100 features drawn
once, as for its ResNet18. Its 550 features for WRN50-2 are computed from that: bytes by formula, time and
peak times 5.5^2. The bank of `ema`, `mean`, `kmeans` and `hybrid` has h*w memories, that of `coreset` a
share of all patches; the first four hold a sample of 8,192 patches. Made-up features have the shape of ResNet18's at
strides 8 and 16; with `--data elpv` they are those of solar cells under EfficientNet-Lite0, with
`elpv-random` under a random ResNet18.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from benchmarks.bank_cost import PADIM_FEATURES, WARM_UP_IMAGES, Cell, Method, measure_cell, padim_bytes
from benchmarks.machine import describe
from cfa_index import (
    FeatureSpec,
    StoredImage,
    StoreHeader,
    StoreWriter,
    extract,
    load_backbone,
    split_cells,
)

Data = Literal["made-up", "elpv", "elpv-random"]

_PAPER = {
    "ema": ("CFA", "O(HWD')", "g(HxWxD)"),
    "mean": ("CFA, its code", "O(HWD')", "g(HxWxD)"),
    "kmeans": ("ours", "-", "-"),
    "hybrid": ("ours, by default", "-", "-"),
    "coreset": ("PatchCore", "O(|X|HWD')", "|X|xg(HxW)xD'"),
    "full": ("SPADE", "O(|X|HWD)", "|X|xHxWxD"),
    "padim": ("PaDiM", "O(|X|HWD^2)", "HxWxD^2"),
}
"""Of each method: the system that it stands for, and its modelling and bank in the paper's Table 1."""
_PADIM_FEATURES_WRN50 = 550
_IMPORTED = ["benchmarks.bank_cost"]
"""What the server of processes imports once."""
_STORE_SHARD = 16


@dataclass(frozen=True, kw_only=True)
class ComplexityRow:
    """One method against the number of images.

    Attributes:
        method: name of the bank's method, or `padim-N` for N features.
        system: what it stands for in the paper's table.
        paper_modelling, paper_bank: the complexities that the paper states.
        computed: the figures are computed from those of another row, not measured.
        images: of each column.
        seconds: to make the bank.
        peak_bytes: growth of the resident size while it is made.
        bank_bytes: of the bank.
        seconds_exponent, peak_exponent, bank_exponent: slopes in log-log.
    """

    method: str
    system: str
    paper_modelling: str
    paper_bank: str
    computed: bool
    images: tuple[int, ...]
    seconds: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    bank_bytes: tuple[int, ...]
    seconds_exponent: float
    peak_exponent: float
    bank_exponent: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def measure_table1(
    images: Sequence[int] = (8, 16, 32, 64),
    seed: int = 0,
    quick: bool = False,
    *,
    data: Data = "made-up",
    share: float = 0.1,
    threads: int = 1,
    say: Callable[[str], None] | None = None,
) -> list[ComplexityRow]:
    """Measure every method at every number of images.

    Args:
        images: two numbers or more, each at least 2.
        seed: of the features, the random choices and the banks.
        quick: patches of 64-pixel images (8 x 8) instead of 224 (28 x 28).
        data: where the features come from.
        share: of all patches in the coreset.
        threads: of each process.
        say: told of each cell, a line.

    Raises:
        ValueError: fewer than two numbers of images, or one below 2.
    """
    if len(set(images)) < 2 or min(images) < WARM_UP_IMAGES:
        raise ValueError(f"expected two numbers of images or more, each at least 2, got {list(images)}")
    features = FeatureSpec(backbone="resnet18", strides=(8, 16), size_px=64 if quick else 224)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        store = _make_store(Path(name), data, features, max(images), seed)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            for method in get_args(Method):
                cells = []
                for count in images:
                    cell = pool.submit(measure_cell, method, store, count, share, seed, threads).result()
                    cells.append(cell)
                    if say is not None:
                        mib = cell.peak_bytes / 2**20
                        say(f"{method}, {count} images: {cell.seconds:.2f} s, {mib:.0f} MiB")
                label = f"padim-{PADIM_FEATURES}" if method == "padim" else method
                rows.append(_row(label, method, images, cells, computed=False))
    # The last method was PaDiM's: its cells are scaled.
    factor = (_PADIM_FEATURES_WRN50 / PADIM_FEATURES) ** 2
    wider = [
        Cell(
            seconds=cell.seconds * factor,
            peak_bytes=round(cell.peak_bytes * factor),
            bank_bytes=padim_bytes(features.patches_per_image, _PADIM_FEATURES_WRN50),
        )
        for cell in cells
    ]
    return [*rows, _row(f"padim-{_PADIM_FEATURES_WRN50}", "padim", images, wider, computed=True)]


def exponent(images: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(images); values below 1 byte or 1 us count as that."""
    floored = np.maximum(np.asarray(values, dtype=float), 1e-6)
    return float(np.polyfit(np.log(images), np.log(floored), 1)[0])


def _row(
    label: str, method: Method, images: Sequence[int], cells: Sequence[Cell], *, computed: bool
) -> ComplexityRow:
    seconds = tuple(cell.seconds for cell in cells)
    peaks, banks = tuple(cell.peak_bytes for cell in cells), tuple(cell.bank_bytes for cell in cells)
    system, modelling, bank = _PAPER[method]
    return ComplexityRow(
        method=label,
        system=system,
        paper_modelling=modelling,
        paper_bank=bank,
        computed=computed,
        images=tuple(images),
        seconds=seconds,
        peak_bytes=peaks,
        bank_bytes=banks,
        seconds_exponent=exponent(images, seconds),
        peak_exponent=exponent(images, [max(peak, 1) for peak in peaks]),
        bank_exponent=exponent(images, banks),
    )


def _make_store(folder: Path, data: Data, features: FeatureSpec, images: int, seed: int) -> Path:
    """A store of `images` pyramids."""
    path = folder / "store.zarr"
    if data == "made-up":
        _write_made_up(path, features, images, seed)
        return path
    files = split_cells("mono").train_good[:images]
    if len(files) < images:
        raise ValueError(f"expected at most {len(files)} images, got {images}")
    if data == "elpv":
        features = replace(features, backbone="efficientnet_lite0")
    backbone = load_backbone(
        features.backbone,
        features.strides,
        size_px=features.size_px,
        weights=None if data == "elpv" else "random",
        seed=seed,
    )
    cpu = torch.device("cpu")
    extract(files, source=files[0].parent, backbone=backbone, features=features, path=path, device=cpu)
    return path


def _write_made_up(path: Path, features: FeatureSpec, images: int, seed: int) -> None:
    """Pyramids of ResNet18's shape: a mean at each position, 16 common directions, and a little noise."""
    rows = [
        StoredImage(uri=f"{n}.png", size=1, mtime_ns=1, sha256=f"{n:064d}", width=256, height=256)
        for n in range(images)
    ]
    header = StoreHeader(
        source=str(path.parent), features=features, weights_sha256=f"{seed:064d}", channels=(128, 256)
    )
    rng = np.random.default_rng(seed)
    shapes = [(c, *grid) for c, grid in zip(header.channels, header.grids, strict=True)]
    means = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    directions = [rng.standard_normal((16, shape[0]), dtype=np.float32) / 4 for shape in shapes]
    with StoreWriter(path, header, rows) as writer:
        for shard in range(-(-images // _STORE_SHARD)):
            some = writer.shard_rows(shard)
            levels = []
            for (_, height, width), mean, common in zip(shapes, means, directions, strict=True):
                along = rng.standard_normal((len(some), height, width, 16), dtype=np.float32)
                noise = 0.1 * rng.standard_normal((len(some), *mean.shape), dtype=np.float32)
                levels.append(torch.from_numpy(mean + (along @ common).transpose(0, 3, 1, 2) + noise))
            writer.write_shard(shard, levels, rows[some.start : some.stop])
        writer.finish()


def table(rows: Sequence[ComplexityRow]) -> str:
    """The rows as Markdown, a table for each quantity."""
    mib = 2**20
    seconds = [(row.seconds, row.seconds_exponent, row.paper_modelling) for row in rows]
    peaks = [([b / mib for b in row.peak_bytes], row.peak_exponent, "-") for row in rows]
    banks = [([b / mib for b in row.bank_bytes], row.bank_exponent, row.paper_bank) for row in rows]
    parts = []
    for title, figures in (("seconds", seconds), ("peak, MiB", peaks), ("bank, MiB", banks)):
        header = [title, *(f"{count} images" for count in rows[0].images), "exponent", "stands for", "paper"]
        lines = [header, ["---"] * len(header)]
        for row, (values, slope, paper) in zip(rows, figures, strict=True):
            label = row.method + (" (computed)" if row.computed else "")
            lines.append(
                [
                    label,
                    *(f"{value:.3g}" for value in values),
                    f"{round(slope, 2) + 0.0:.2f}",
                    row.system,
                    _escaped(paper),
                ]
            )
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", help="default: 8 16 32 64; with --quick 4 8 16")
    parser.add_argument("--quick", action="store_true", help="8 x 8 patches: proves every cell in a minute")
    parser.add_argument("--data", choices=get_args(Data), default="made-up")
    parser.add_argument("--share", type=float, default=0.1, help="of all patches in the coreset")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    images = given.images or ([4, 8, 16] if given.quick else [8, 16, 32, 64])
    settings = {"data": given.data, "share": given.share, "threads": given.threads, "quick": given.quick}
    print(describe(given.seed, **settings), flush=True)
    rows = measure_table1(
        images,
        given.seed,
        given.quick,
        data=given.data,
        share=given.share,
        threads=given.threads,
        say=lambda line: print(f"  {line}", flush=True),
    )
    print("\n" + table(rows))
    if given.json:
        given.json.write_text(json.dumps([row.to_dict() for row in rows], indent=2))


if __name__ == "__main__":
    main()
