"""The memory bank and its search. The only package that imports faiss."""

# Before FAISS: torch makes its OpenMP runtime known to the whole process, and FAISS then uses that one and
# not its own. Two pools, each spinning while the other works, cost a small search three times its time.
import torch  # noqa: F401, for the order alone

from cfa_index.bank.builder import LISTS_BYTES, LISTS_FILE, BuiltIndex, build_faiss
from cfa_index.bank.cards import Bank, SpreadBank, bank_on
from cfa_index.bank.choice import IndexChoice, make_index
from cfa_index.bank.exact import exact_sq_distances, nearest_rows
from cfa_index.bank.faiss_gpu import gpu_count
from cfa_index.bank.index import SearchIndex, changed_faiss, faiss_version, read_faiss
from cfa_index.bank.kmeans import kmeans
from cfa_index.bank.memory import MemoryBank, PatchSources
from cfa_index.bank.nearest import NearestRow
from cfa_index.bank.neighbors import Neighbors, not_finite, require_finite
from cfa_index.bank.recipes import Recipe, recipes_of
from cfa_index.bank.state import IndexState, IndexTrial
from cfa_index.bank.threads import faiss_threads, set_threads, shared_threads, shares_torch_threads
from cfa_index.bank.tuning import Truth, recall_at, tune

__all__ = [
    "LISTS_BYTES",
    "LISTS_FILE",
    "Bank",
    "BuiltIndex",
    "IndexChoice",
    "IndexState",
    "IndexTrial",
    "MemoryBank",
    "NearestRow",
    "Neighbors",
    "PatchSources",
    "Recipe",
    "SearchIndex",
    "SpreadBank",
    "Truth",
    "bank_on",
    "build_faiss",
    "changed_faiss",
    "exact_sq_distances",
    "faiss_threads",
    "faiss_version",
    "gpu_count",
    "kmeans",
    "make_index",
    "nearest_rows",
    "not_finite",
    "read_faiss",
    "recall_at",
    "recipes_of",
    "require_finite",
    "set_threads",
    "shared_threads",
    "shares_torch_threads",
    "tune",
]
