"""Everything that cfa-index raises on purpose.

    CfaIndexError
    ├── SpecError      (also ValueError)   a setting that cannot be
    ├── DatasetError   (also LookupError)  a data root, category or folder that is not as expected
    ├── ImageError     (also ValueError)   one image that cannot be used
    ├── WeightsError   (also ValueError)   backbone weights missing or of another network
    ├── StoreError     (also RuntimeError) a PatchStore that is damaged or does not fit
    ├── BankError      (also ValueError)   a memory bank that cannot be made or searched
    ├── BundleError    (also RuntimeError) a model directory that is damaged, newer, or missing
    ├── DeviceError    (also RuntimeError) a device that is not there
    │   └── CardMemoryError (also MemoryError) a card whose memory is too small, or has run out
    ├── EngineError    (also RuntimeError) a cluster that is not there, too small, or fails
    └── OutputError    (also OSError)      a disk that is full, read-only or refuses

Each message is one line: what was expected, what came, what to do.
"""

from __future__ import annotations


class CfaIndexError(Exception):
    """Base of all errors of this package; `str()` gives one line for a person."""

    def __init__(self, *, expected: str, got: str, remedy: str) -> None:
        self.expected = expected
        self.got = got
        self.remedy = remedy
        message = " ".join(f"expected {expected}, got {got}; {remedy}".split())
        # A file's name may hold what moves the cursor of a terminal.
        super().__init__("".join(sign if sign.isprintable() else _escaped(sign) for sign in message))

    def __reduce__(self) -> tuple[object, ...]:
        return (_remake, (type(self), self.expected, self.got, self.remedy))


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode()


def _remake(kind: type[CfaIndexError], expected: str, got: str, remedy: str) -> CfaIndexError:
    """Rebuild an error on the other side of a process boundary (keyword-only arguments)."""
    return kind(expected=expected, got=got, remedy=remedy)


class SpecError(CfaIndexError, ValueError):
    """A setting has a value that cannot be, or two settings contradict each other."""


class DatasetError(CfaIndexError, LookupError):
    """A data root, category or folder is missing, empty, or not laid out as expected."""


class ImageError(CfaIndexError, ValueError):
    """One image cannot be read, or is not what the model takes."""


class WeightsError(CfaIndexError, ValueError):
    """Backbone weights are missing, unreadable, or belong to another network."""


class StoreError(CfaIndexError, RuntimeError):
    """A PatchStore is damaged, unfinished, or was made with other settings."""


class BankError(CfaIndexError, ValueError):
    """A memory bank cannot be made from these patches, or cannot answer this query."""


class BundleError(CfaIndexError, RuntimeError):
    """A model directory is missing, damaged, unfinished, or of a newer format."""


class DeviceError(CfaIndexError, RuntimeError):
    """The asked device is not there or cannot be used."""


class CardMemoryError(DeviceError, MemoryError):
    """A card has too little memory for what is to be put on it, or ran out of it."""


class EngineError(CfaIndexError, RuntimeError):
    """The machinery that runs the work elsewhere is missing, too small, or has failed."""


class OutputError(CfaIndexError, OSError):
    """Something could not be written: a full or read-only disk, a missing permission."""
