"""Whether something fits on a card, and one error for a card whose memory has run out.

All that is asked of CUDA about memory is asked here. torch keeps what it has freed for its next tensors; FAISS has an
allocator of its own and cannot take it from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from cfa_index.errors import CardMemoryError
from cfa_index.footprint import Footprint, in_words

_RUN_OUT = ("out of memory", "alloc_failed", "memory allocation error")
"""In what torch, cuBLAS, cuDNN (`..._STATUS_ALLOC_FAILED`) and FAISS say, in lower case."""
_ASKED = re.compile(
    r"tried to allocate ([\d.]+ ?(?:[KMGT]?i?B|bytes))\b|\bsize (\d+) bytes|cudahostalloc (\d+) bytes",
    re.IGNORECASE,
)
"""Of torch; of FAISS on the card; of FAISS in pinned memory of the host."""
_MOST_ADVICE = 3
_ON_THE_CPU = "use --device cpu"


def memory_of(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a card, by its driver; None for what is no CUDA device, or does not tell."""
    if device.type != "cuda":
        return None
    with suppress(RuntimeError):
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    return None


def release_cached(device: torch.device) -> None:
    """Give back what torch keeps of a card for later, so that FAISS can have it, and it is counted as free."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def require_room(footprint: Footprint, free_bytes: int, device: torch.device) -> None:
    """Refuse what cannot fit.

    Raises:
        CardMemoryError: it takes more than is free; the message names its largest parts and what to lower.
    """
    if footprint.total > free_bytes:
        parts = footprint.largest(_MOST_ADVICE)
        advice = dict.fromkeys(part.lower for part in parts)
        raise CardMemoryError(
            expected=f"room on {device} for {footprint.describe()}",
            got=f"{in_words(free_bytes)} free",
            remedy=", ".join([*advice, f"or {_ON_THE_CPU}"]),
        )


def make_room(footprint: Footprint, device: torch.device) -> None:
    """`require_room` of what is free once torch's cache has been given back; on the CPU nothing.

    Raises:
        CardMemoryError: see `require_room`.
    """
    release_cached(device)
    if (memory := memory_of(device)) is not None:
        require_room(footprint, memory[0], device)


def has_room(footprint: Footprint, device: torch.device) -> bool:
    """Whether something fits, see `make_room`; on the CPU it does."""
    try:
        make_room(footprint, device)
    except CardMemoryError:
        return False
    return True


@contextmanager
def card_memory(device: torch.device, work: str, *, lower: str) -> Iterator[None]:
    """Say in one line what happened where a card's memory runs out in the body.

    Args:
        device: the card; on the CPU errors pass as they are.
        work: what is done in the body, such as `scoring a batch of 8 images`.
        lower: what to make smaller, as an advice.

    Raises:
        CardMemoryError: of torch's OutOfMemoryError, or the RuntimeError of FAISS, cuBLAS or cuDNN.
    """
    try:
        yield
    except CardMemoryError:
        raise
    except RuntimeError as error:
        if device.type == "cpu" or not has_run_out(error):
            raise
        asked, on_host = _asked(error)
        memory = memory_of(device)
        room = "" if memory is None else f", {in_words(memory[0])} free of {in_words(memory[1])} on {device}"
        where = "the host's pinned memory" if on_host else str(device)
        raise CardMemoryError(
            expected=f"enough memory for {work} on {device}",
            got=f"none left in {where}: {asked} asked for{room}",
            remedy=f"{lower}, end other programs on the card, or {_ON_THE_CPU}",
        ) from error


def has_run_out(error: BaseException) -> bool:
    """Whether an error says that memory has run out, by torch's class or by the words of the others."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(one in words for one in _RUN_OUT)


def _asked(error: BaseException) -> tuple[str, bool]:
    """How much was asked for, as far as it is said, and whether of the host."""
    match = _ASKED.search(str(error))
    if match is None:
        return "an unknown amount", False
    size = match[2] or match[3]
    return (in_words(int(size)) if size else match[1]), match[3] is not None
