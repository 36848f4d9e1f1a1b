"""Which exceptions are a line for the person, what it says, and how one category's does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cfa_index.errors import CfaIndexError

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc")
"""In the text of a RuntimeError of torch (CPU, CUDA) or FAISS."""
_LONGEST_QUOTE = 120

Result = TypeVar("Result")


def error_line(error: Exception) -> str | None:
    """One line for a `CfaIndexError`, memory that ran out, or an `OSError`; None for all else.

    A broken pipe is none: nobody is left to read the line.
    """
    if isinstance(error, CfaIndexError):
        return f"cfa-index: {error}"
    if _is_out_of_memory(error):
        got = " ".join(str(error).split())[:_LONGEST_QUOTE] or "none left"
        return f"cfa-index: expected enough memory, got {got}; give a smaller --batch-size or --size"
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        # A folder that may not be entered, a name that is too long.
        got = error.strerror or str(error)
        place = f" {error.filename}" if error.filename else " a file"
        return f"cfa-index: expected to use{place}, got {got}; check the path and its permissions"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """By name and text where it is torch's, which is not imported for this."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def each_category(
    names: Sequence[str], work: Callable[[str], Result], say: Callable[[str], None]
) -> tuple[list[Result], bool]:
    """Do the work of each category; among several, one that fails is a line to `say` and the others go on.

    Returns:
        The results of those that did not fail, and whether one failed.
    """
    results: list[Result] = []
    for name in names:
        try:
            results.append(work(name))
        except Exception as error:
            line = error_line(error)
            if line is None or len(names) == 1:
                raise
            say(line)
    return results, len(results) < len(names)
