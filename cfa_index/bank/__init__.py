"""The memory bank and its search. The only package that imports faiss."""

# Before FAISS: torch makes its OpenMP runtime known to the whole process, and FAISS then uses that one and
# not its own. Two pools, each spinning while the other works, cost a small search three times its time.
import torch  # noqa: F401, for the order alone

from cfa_index.bank.index import exact_sq_distances, faiss_version, gpu_count, nearest_rows
from cfa_index.bank.kmeans import kmeans
from cfa_index.bank.memory import MemoryBank, PatchSources
from cfa_index.bank.neighbors import Neighbors
from cfa_index.bank.threads import set_threads, shared_threads

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
    "shared_threads",
]
