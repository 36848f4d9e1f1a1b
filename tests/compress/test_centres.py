from __future__ import annotations

import pytest
from streams import random_images, stream_of

from cfa_index.compress import kmeans_bank, sample_patches
from cfa_index.errors import BankError


def test_kmeans_bank_can_be_larger_than_an_image() -> None:
    sample = sample_patches(stream_of(random_images(5)), images=5, per_image=9, limit=100, seed=0)
    assert kmeans_bank(sample, 20, iterations=3, seed=0).shape == (20, 4)
    with pytest.raises(BankError, match="got 45 patches"):
        kmeans_bank(sample, 46, iterations=3, seed=0)
