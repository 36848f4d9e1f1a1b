"""The memory bank and its search. The only package that imports faiss."""

from cfa_index.bank.index import exact_sq_distances, faiss_version, gpu_count, nearest_rows, set_threads
from cfa_index.bank.kmeans import kmeans
from cfa_index.bank.memory import MemoryBank, PatchSources
from cfa_index.bank.neighbors import Neighbors

__all__ = [
    "MemoryBank",
    "Neighbors",
    "PatchSources",
    "exact_sq_distances",
    "faiss_version",
    "gpu_count",
    "kmeans",
    "nearest_rows",
    "set_threads",
]
