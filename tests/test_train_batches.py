"""Batches of a store that a thread reads ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from cfa_index.store import PatchStore
from cfa_index.transfers import Uploads
from cfa_index.workflows import train_batches as module
from cfa_index.workflows.train_batches import train_batches

CPU = torch.device("cpu")


class SlowStore:
    """A store whose second read waits until it is allowed to end."""

    def __init__(self) -> None:
        self.begun, self.allowed = threading.Event(), threading.Event()
        self.reads: list[Sequence[int]] = []

    def read(self, rows: Sequence[int], empty: Callable[..., Tensor]) -> list[Tensor]:
        del empty
        self.reads.append(rows)
        if len(self.reads) == 2:
            self.begun.set()
            self.allowed.wait()
        return [torch.zeros(len(rows), 3, 2, 2)]


def test_what_an_error_left_is_closed_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may do it in the very thread that the read needs: a wait would be for ever."""
    monkeypatch.setattr(module, "_inspected", lambda *_: None)
    store = SlowStore()
    batches = train_batches(cast(PatchStore, store), [[0], [1], [2]], Uploads(CPU))
    assert next(iter(batches)).rows == [0]
    assert store.begun.wait(10)  # else it would be cancelled before it begins
    closing = threading.Thread(target=batches.close, daemon=True)  # type: ignore[attr-defined]
    closing.start()
    closing.join(10)
    still_waits = closing.is_alive()
    store.allowed.set()
    closing.join()
    assert not still_waits
    assert store.reads == [[0], [1]]
