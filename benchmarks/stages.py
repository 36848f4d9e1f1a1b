"""Where the time goes: each stage of inference and of a training step as a ratio to the backbone.

    python -m benchmarks.stages [--gamma 1/4 --gamma 1] [--batch 4] [--rounds 7] [--index pca-refine]

The backbone has random weights (speed does not depend on them), the features are those of made-up
images with large and small structure. `backbone` is its forward pass alone, without the pooling.
Everything is timed in turn in one process; a ratio is the median over rounds. `whole inference` is
pixels to maps and scores; decoding and writing stand apart. As in the commands that loop, freed memory is
kept for the next step; `--give-back` shows what that is worth. `product, its shape` is one matrix product
of all patches with all memories, what an exact search cannot do without. An `--index` is tuned to recall@1
of 0.999 on images that are not in the bank; by default the search is Flat's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.machine import describe, median_ratio, time_in_turn
from cfa_index import (
    BankSpec,
    DescriptorSpec,
    FeatureSpec,
    Frame,
    IndexSpec,
    MapMaker,
    MemoryBank,
    PatchStore,
    Scorer,
    ScoreSpec,
    Trainer,
    TrainSpec,
    compress_store,
    decode,
    extract,
    image_scores,
    initial_descriptor,
    load_backbone,
    make_index,
    nearest_distances,
    network_pixels,
    overlay,
    patch_stream,
    reuse_freed_memory,
    save_picture,
    set_threads,
)

TARGETS = {"1/4": (0.5, 1.4), "1": (3.7, 3.4)}
"""By gamma: at most this many times the backbone for a training step, and for whole inference."""
INDEXED_TARGETS = {"1": (2.0, 2.2)}
"""The same with an index."""
_TUNING_IMAGES = 2


def made_up_image(number: int, side: int = 300) -> Image.Image:
    """A grey image with structure at several scales, different for every number."""
    rng = np.random.default_rng(number)
    total = np.zeros((side, side))
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        total += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / cells**0.5
    scaled = 255 * (total - total.min()) / np.ptp(total)
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def make_store(
    folder: Path, backbone: Any, features: FeatureSpec, images: int
) -> tuple[PatchStore, list[Path]]:
    """A store of made-up images, and their files."""
    files = []
    for number in range(images):
        file = folder / "images" / f"{number:03d}.png"
        file.parent.mkdir(exist_ok=True)
        made_up_image(number).save(file)
        files.append(file)
    store = extract(
        files,
        source=folder / "images",
        backbone=backbone,
        features=features,
        path=folder / "store.zarr",
        device=torch.device("cpu"),
    )
    return store, files


def measure(
    gamma: str, *, backbone_name: str, batch: int, rounds: int, images: int, seed: int, index: str
) -> dict[str, Any]:
    """Ratios to the backbone at one gamma = gamma_c = gamma_d."""
    ratio = float(Fraction(gamma))
    cpu = torch.device("cpu")
    features = FeatureSpec(backbone=backbone_name, strides=(4, 8, 16))
    backbone = load_backbone(backbone_name, features.strides, weights="random", seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, files = make_store(folder, backbone, features, images + _TUNING_IMAGES)
        phi = initial_descriptor(
            DescriptorSpec(init="he", gamma_d=ratio, standardise=False),
            store.header.channels,
            None,
            seed=seed,
        )
        vectors, _ = compress_store(
            store,
            range(images),
            phi,
            BankSpec(method="mean", size=None, gamma_c=ratio, iterations=2),
            seed=seed,
        )
        bank = MemoryBank(vectors, cpu)
        described = "flat"
        if index != "flat":
            others = patch_stream(store, range(images, images + _TUNING_IMAGES), phi)
            choice = make_index(
                vectors,
                IndexSpec(factory=index, min_recall=0.999),
                np.concatenate([part for _, _, part in others()]),
                k=ScoreSpec().neighbors,
                patches_per_image=features.patches_per_image,
                seed=seed,
            )
            bank = bank if choice.index is None else bank.with_index(choice.index)
            described = f"{choice.state.describe()}, recall@1 {choice.state.recall_at_1:.4f}"
        score = ScoreSpec()
        scorer = Scorer(backbone, phi, bank, features=features, score=score)
        folded = phi.folded()
        maker = MapMaker(features.grid, features.size_px, score.sigma_px, cpu)
        trainer = Trainer(phi, bank, TrainSpec(batch_size=batch, radius=1e-5), radius=1e-5)
        rows = list(range(batch))
        pixels, frames = _pixels(files[:batch], features)
        with torch.inference_mode():
            levels = backbone.pyramid(pixels)
            patches = folded(levels)
            found = bank.search(patches.flatten(0, 1), score.neighbors, exact=True)
        images_shown = [decode(file) for file in files[:batch]]
        flat_maps = np.zeros((batch, features.size_px, features.size_px), dtype=np.float32)
        table = pa.table({"uri": [file.name for file in files[:batch]], "score": [1.0] * batch})

        def maps() -> object:
            scores = nearest_distances(found.sq_distances).view(batch, *features.grid)
            return image_scores(maker(scores, None))

        def write_heatmaps() -> None:
            for image, values, frame in zip(images_shown, flat_maps, frames, strict=True):
                save_picture(overlay(image, values, frame, 1.0), folder / "heatmap.png")

        jobs: dict[str, Callable[[], object]] = {
            "backbone": _inference(lambda: backbone.levels(pixels)),
            "decode": lambda: _pixels(files[:batch], features),
            "backbone + pooling": _inference(lambda: backbone.pyramid(pixels)),
            "descriptor": _inference(lambda: folded(levels)),
            "search": _inference(lambda: bank.search(patches.flatten(0, 1), score.neighbors, exact=True)),
            "product, its shape": _inference(lambda: patches.flatten(0, 1) @ bank.tensor.T),
            "maps": _inference(maps),
            "write rows": lambda: pq.write_table(table, folder / "rows.parquet"),
            "write heatmaps": write_heatmaps,
            "whole inference": _inference(lambda: scorer.score_pixels(pixels, frames)),
            "store read": lambda: store.read(rows),
            "training step": lambda: trainer.step(store.read(rows)),
        }
        seconds = time_in_turn(jobs, rounds)
    base = seconds["backbone"]
    return {
        "gamma": gamma,
        "bank": list(vectors.shape),
        "index": described,
        "ms_per_image": {job: 1000 * statistics.median(values) / batch for job, values in seconds.items()},
        "ratio_to_backbone": {job: median_ratio(values, base) for job, values in seconds.items()},
    }


def _pixels(files: list[Path], features: FeatureSpec) -> tuple[torch.Tensor, list[Frame]]:
    decoded = [network_pixels(decode(file), features) for file in files]
    return torch.stack([pixels for pixels, _ in decoded]), [frame for _, frame in decoded]


def _inference(job: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return job()

    return run


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gamma", action="append", help="such as 1/4; may be repeated")
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--index", default="flat", help="a short name or a FAISS factory string")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--give-back", action="store_true", help="leave freed memory to the C library's own rules"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(given.threads)
    if not given.give_back:
        reuse_freed_memory()
    print(describe(given.seed, backbone=given.backbone, batch=given.batch, rounds=given.rounds, size="224"))
    results = []
    for gamma in given.gamma or ["1/4", "1"]:
        result = measure(
            gamma,
            backbone_name=given.backbone,
            batch=given.batch,
            rounds=given.rounds,
            images=max(given.images, given.batch),
            seed=given.seed,
            index=given.index,
        )
        results.append(result)
        print(f"\ngamma {gamma}, bank {result['bank'][0]} x {result['bank'][1]}, {result['index']}")
        print(f"{'stage':>20} {'ms/image':>9} {'x backbone':>11}")
        for job, ms in result["ms_per_image"].items():
            print(f"{job:>20} {ms:9.1f} {result['ratio_to_backbone'][job]:11.2f}")
        targets = TARGETS if given.index == "flat" else INDEXED_TARGETS
        if gamma in targets:
            step, whole = targets[gamma]
            print(f"{'targets':>20}           training step {step}, whole inference {whole}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
