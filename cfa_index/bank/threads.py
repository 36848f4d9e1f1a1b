"""How many threads the maths may use."""

from __future__ import annotations

import faiss
import torch
from threadpoolctl import threadpool_limits

from cfa_index.errors import SpecError


def set_threads(threads: int) -> None:
    """Give the loops of FAISS, torch and numpy `threads` threads each; no two of them run at once.

    Raises:
        SpecError: fewer than one.
    """
    if threads < 1:
        raise SpecError(expected="1 thread or more", got=str(threads), remedy="give another --threads")
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    threadpool_limits(threads)
