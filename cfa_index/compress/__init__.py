"""From the patches of all good images to a bank of M memories, in bounded memory."""

from cfa_index.compress.centres import kmeans_bank
from cfa_index.compress.coreset import coreset_bank
from cfa_index.compress.gallery import full_bank, gather_patches, random_bank
from cfa_index.compress.hybrid import hybrid_bank, worst_covered
from cfa_index.compress.k_centre import greedy_k_centre
from cfa_index.compress.positions import ema_bank, mean_bank
from cfa_index.compress.sample import PatchSample, nearest_sources, sample_patches
from cfa_index.compress.stream import PatchStream

__all__ = [
    "PatchSample",
    "PatchStream",
    "coreset_bank",
    "ema_bank",
    "full_bank",
    "gather_patches",
    "greedy_k_centre",
    "hybrid_bank",
    "kmeans_bank",
    "mean_bank",
    "nearest_sources",
    "random_bank",
    "sample_patches",
    "worst_covered",
]
