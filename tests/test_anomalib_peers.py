"""What the comparison with anomalib shares with cfa_index; anomalib itself is not needed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.anomalib_peers import Measured, RememberedMaps, hold_out, summarise, update_distances_pruned
from cfa_index import preset, split_held_out


@pytest.mark.parametrize("count", [1, 4, 470, 736])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_images_are_held_out(count: int, seed: int) -> None:
    assert hold_out(count, seed) == split_held_out(range(count), preset("recommended").held_out, seed)


def test_the_last_epoch_is_reported_and_the_best_is_named_beside_it() -> None:
    labels = np.array([False, False, True, True])
    results = [
        Measured(scores=np.array(scores), memories=9, fit_seconds=1.0, score_seconds=1.0, note="")
        for scores in ([1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 1.0, 2.0])
    ]
    files = [Path(f"cells/{number}.png") for number in range(4)]
    found = summarise(results, files, labels)
    assert found["image_auroc"] == 0.0
    assert found["scores"] == [3.0, 4.0, 1.0, 2.0]
    assert found["images"] == [["0.png", 0], ["1.png", 0], ["2.png", 1], ["3.png", 1]]
    assert found["image_auroc_by_epoch"] == [0.75, 1.0, 0.0]
    assert found["best_epoch_on_these_labels"] == 1
    assert found["best_scores"] == [1.0, 2.0, 3.0, 4.0]
    assert "best_scores" not in summarise(results[:1], files, labels)


def k_center(features: torch.Tensor, count: int, update: Callable[[Any, torch.Tensor], None]) -> list[int]:
    """Picks of the greedy k-centre from row 0, as anomalib's sampler makes them around an update."""
    sampler = SimpleNamespace(features=features, min_distances=None)
    picks = [torch.tensor(0)]
    while len(picks) < count:
        update(sampler, picks[-1])
        picks.append(sampler.min_distances[:, 0].argmax())
        sampler.min_distances[picks[-1]] = 0.0
    return [int(pick) for pick in picks]


def test_the_pruned_search_picks_the_same_patches() -> None:
    def plain(sampler: Any, center: torch.Tensor) -> None:
        distances = torch.linalg.norm(sampler.features - sampler.features[center], dim=1, keepdim=True)
        old = sampler.min_distances
        sampler.min_distances = distances if old is None else torch.minimum(old, distances)

    # Clumps, so that there is something to leave out, and every patch twice, so that distances tie.
    generator = torch.Generator().manual_seed(0)
    clumps = 5 * torch.randn(12, 8, generator=generator).repeat_interleave(50, dim=0)
    features = (clumps + torch.randn(600, 8, generator=generator)).repeat(2, 1)
    assert k_center(features, 100, update_distances_pruned) == k_center(features, 100, plain)


class Doubler(torch.nn.Module):
    """An extractor that counts the images that it is given."""

    seen = 0

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen += len(images)
        return {"mean": images.mean(1, keepdim=True), "double": 2 * images}


def test_remembered_maps_are_those_of_the_extractor() -> None:
    extractor = Doubler()
    remembered = RememberedMaps(extractor)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    remembered(images[:2])
    remembered(images[2:])
    maps = remembered(images[[3, 0, 1]])
    assert torch.equal(maps["double"], 2 * images[[3, 0, 1]])
    assert maps["mean"].shape == (3, 1, 8, 8)
    assert extractor.seen == 4
