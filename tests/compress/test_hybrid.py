from __future__ import annotations

import numpy as np
import pytest

from cfa_index.bank import kmeans
from cfa_index.compress import PatchSample, hybrid_bank
from cfa_index.errors import BankError


def sample_of(x: np.ndarray) -> PatchSample:
    zeros = np.zeros(len(x), np.int64)
    return PatchSample(features=x.astype(np.float32), rows=zeros, cells=zeros)


def test_centres_come_first_and_then_what_they_cover_worst() -> None:
    draw = np.random.default_rng(0)
    far = np.array([[30.0], [62.0], [70.0], [-40.0]])
    dense, rare = draw.normal(0, 1, (300, 4)), draw.normal(0, 0.1, (4, 4)) + far
    sample = sample_of(np.concatenate([dense, rare]))
    bank = hybrid_bank(sample, 12, coverage=0.5, iterations=5, seed=1)
    assert bank.shape == (12, 4)
    np.testing.assert_array_equal(bank[:6], kmeans(sample.features, 6, iterations=5, seed=1))
    # The picks are patches, in the order of the plain algorithm.
    covered = ((sample.features[:, None].astype(np.float64) - bank[None, :6]) ** 2).sum(2).min(1)
    for pick in bank[6:]:
        row = int(covered.argmax())
        np.testing.assert_array_equal(pick, sample.features[row])
        covered = np.minimum(covered, ((sample.features.astype(np.float64) - pick) ** 2).sum(1))


@pytest.mark.parametrize("memories", [1, 2, 20])
def test_any_size_up_to_the_sample(memories: int) -> None:
    x = np.random.default_rng(1).normal(size=(20, 3))
    bank = hybrid_bank(sample_of(x), memories, coverage=0.5, iterations=2, seed=0)
    assert bank.shape == (memories, 3)
    assert np.isfinite(bank).all()


def test_more_memories_than_patches_are_refused() -> None:
    with pytest.raises(BankError, match="got"):
        hybrid_bank(sample_of(np.ones((3, 2))), 4, coverage=0.5, iterations=1, seed=0)
