"""How many threads FAISS and torch use, in this process and in a child that was forked from it.

The wheels of FAISS and torch bring an OpenMP runtime each. On Linux FAISS uses torch's where torch was loaded
first, as this package does; a program that imports FAISS before has two pools of threads. FAISS's number
belongs to the thread that sets it; torch's holds for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import torch
from threadpoolctl import threadpool_limits

from cfa_index.errors import SpecError

_IMPORTED_BY = os.getpid()


def set_threads(threads: int) -> None:
    """Give the loops of FAISS, torch and numpy `threads` threads each; no two of them run at once.

    It holds for every thread of the process, as torch's own number does: see `shared_threads`. Threads that
    search at the same time have a pool each, so a program with w of them gives the cores divided by w.

    Raises:
        SpecError: fewer than one.
    """
    if threads < 1:
        raise SpecError(expected="1 thread or more", got=str(threads), remedy="give another --threads")
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def faiss_threads() -> int:
    """Threads that FAISS uses when it is called from this thread."""
    return int(faiss.omp_get_max_threads())


def shares_torch_threads() -> bool:
    """Whether FAISS works in torch's pool of threads: asked by changing torch's number for a moment."""
    before = torch.get_num_threads(), faiss_threads()
    try:
        torch.set_num_threads(before[1] + 1)
        return faiss_threads() == before[1] + 1
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


@contextmanager
def shared_threads() -> Iterator[None]:
    """Around calls of FAISS: no more threads than torch may use; afterwards FAISS's number is what it was.

    After a fork the child has the state of its parent's pools but none of their threads, and waits for
    them for ever (FAISS #5206; torch alike). So in a child of the process that imported this module FAISS
    and torch use one thread, and get their numbers back afterwards. Also a decorator.
    """
    faiss_threads, torch_threads = faiss.omp_get_max_threads(), torch.get_num_threads()
    forked = os.getpid() != _IMPORTED_BY
    if forked:
        torch.set_num_threads(1)
    faiss.omp_set_num_threads(1 if forked else min(faiss_threads, torch_threads))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(faiss_threads)
        if forked:
            torch.set_num_threads(torch_threads)
