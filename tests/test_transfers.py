"""Copies between host and device: what waits for what, and how long memory lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from cfa_index.transfers import Aside, Downloads, Uploads

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(torch.device("cuda", 0), id="cuda", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back_are_the_same_values(device: torch.device) -> None:
    uploads, downloads = Uploads(device), Downloads(device)
    for number in range(5):
        bytes_, floats = uploads.staging((2, 3), torch.uint8), torch.full((4, 5, 6), number / 7)
        bytes_.fill_(number)
        sent = uploads([bytes_, floats.permute(2, 0, 1), torch.arange(3, device=device)])
        assert [tensor.device for tensor in sent] == [device] * 3
        pending = downloads.start([tensor + 0 for tensor in sent])
        back = pending.result()
        assert all(tensor.device == CPU for tensor in back)
        assert torch.equal(back[0], torch.full((2, 3), number, dtype=torch.uint8))
        assert torch.equal(back[1], floats.permute(2, 0, 1))
        assert back[2].tolist() == [0, 1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_a_result_does_not_see_what_is_computed_later(device: torch.device) -> None:
    pending = []
    for number in range(20):
        value = torch.full((256, 256), float(number), device=device)
        pending.append(Downloads(device).start([value]))
        del value  # its memory is free for the next one, but for the copy
    assert [float(one.result()[0].mean()) for one in pending] == [float(number) for number in range(20)]


def test_on_the_cpu_nothing_is_copied() -> None:
    given = torch.zeros(3)
    assert Uploads(CPU)([given])[0] is given
    assert Downloads(CPU).start([given]).result()[0].data_ptr() == given.data_ptr()
    assert not Uploads(CPU).staging((2,), torch.uint8).is_pinned()


def test_results_of_a_gradient_step_are_plain_values() -> None:
    loss = (torch.ones(3, requires_grad=True) * 2).sum()
    assert Downloads(CPU).start([loss]).result()[0].numpy() == 6


def _made(log: list[str], count: int) -> Iterator[int]:
    for number in range(count):
        log.append(f"make {number}")
        yield number


@pytest.mark.parametrize(
    ("device", "order"),
    [
        ("cpu", ["make 0", "read 0", "make 1", "read 1", "make 2", "read 2"]),
        ("meta", ["make 0", "make 1", "read 0", "make 2", "read 1", "read 2"]),
    ],
)
def test_on_a_card_results_are_read_behind(device: str, order: list[str]) -> None:
    log: list[str] = []
    log.extend(f"read {number}" for number in Downloads(torch.device(device)).behind(_made(log, 3)))
    assert log == order
    assert list(Downloads(torch.device(device)).behind([])) == []


class _Cuda:
    """torch.cuda as far as transfers call it: a log of what was asked, in order, on tensors of the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self._streams: list[str] = ["current"]
        self._events = 0
        log, names = self.log, iter(["copies"])
        cuda = self

        class Stream:
            def __init__(self, _device: torch.device, name: str = "") -> None:
                self.name = name or next(names)

            def wait_stream(self, other: Stream) -> None:
                log.append(f"{self.name} waits for {other.name}")

            def synchronize(self) -> None:
                log.append(f"host waits for {self.name}")

            def record_event(self, event: Event) -> None:
                log.append(f"{self.name} records {event.name}")

        class Event:
            def __init__(self, *, blocking: bool) -> None:
                assert blocking
                self.name = f"event {cuda._events}"
                cuda._events += 1

            def synchronize(self) -> None:
                log.append(f"host waits for {self.name}")

        @contextmanager
        def within(stream: Stream) -> Iterator[None]:
            cuda._streams.append(stream.name)
            yield
            cuda._streams.pop()

        def to(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
            log.append(f"{cuda._streams[-1]} copies{' at once' * (not non_blocking)}")
            return tensor.clone()

        def copy(target: Tensor, source: Tensor, *, non_blocking: bool = False) -> Tensor:
            log.append(f"{cuda._streams[-1]} copies{' at once' * (not non_blocking)}")
            return target

        def pin(tensor: Tensor) -> Tensor:
            log.append("pin")
            return tensor

        def empty_like(tensor: Tensor, *, device: str, pin_memory: bool) -> Tensor:
            assert (device, pin_memory) == ("cpu", True)
            return tensor.clone()

        def kept(tensor: Tensor, stream: Stream) -> None:
            log.append(f"kept for {stream.name}")

        current = Stream(CPU, "current")
        for name, value in {"Stream": Stream, "Event": Event, "stream": within}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: current)
        monkeypatch.setattr(torch, "empty_like", empty_like)
        replaced: dict[str, Any] = {"to": to, "copy_": copy, "pin_memory": pin, "record_stream": kept}
        for name, value in replaced.items():
            monkeypatch.setattr(Tensor, name, value)
        monkeypatch.setattr(Tensor, "is_pinned", lambda _tensor: False)

    def logged(self) -> list[str]:
        """What was asked since the last time."""
        found = self.log.copy()
        self.log.clear()
        return found


def test_a_batch_is_copied_on_a_stream_that_the_current_one_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = _Cuda(monkeypatch)
    uploads = Uploads(torch.device("cuda", 0))
    uploads([torch.zeros(1)])
    assert cuda.logged() == [
        *("pin", "current records event 0", "copies copies"),
        *("current waits for copies", "kept for current"),
    ]


def test_no_more_batches_are_under_way_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(monkeypatch)
    uploads = Uploads(torch.device("cuda", 0), under_way=2)
    for _ in range(2):
        uploads([torch.zeros(1)])
    assert not any(line.startswith("host") for line in cuda.logged())
    uploads([torch.zeros(1)])  # the third: waits for what was queued before the second, so for the first
    assert [line for line in cuda.logged() if line.startswith("host")] == ["host waits for event 1"]
    uploads([torch.zeros(1)])
    assert cuda.logged()[:3] == ["pin", "current records event 3", "host waits for event 2"]
    assert len(uploads._under_way) == 2


def test_a_result_is_copied_after_it_is_computed_and_waited_for_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = _Cuda(monkeypatch)
    pending = Downloads(torch.device("cuda", 0)).start([torch.zeros(1)])
    assert cuda.logged() == [
        *("copies waits for current", "copies copies", "kept for copies", "copies records event 0"),
    ]
    pending.result()
    assert cuda.logged() == ["host waits for event 0"]


def test_tensors_are_made_aside_where_nothing_is_left_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(monkeypatch)

    def make() -> list[Tensor]:
        cuda.log.append(f"{cuda._streams[-1]} makes")
        return [torch.zeros(1)]

    assert len(Aside(torch.device("cuda", 0))(make)) == 1
    assert cuda.logged() == [
        *("host waits for copies", "copies makes"),  # so the fake names the stream
        *("current waits for copies", "kept for current"),
    ]
    given = [torch.zeros(1)]
    assert Aside(CPU)(lambda: given) is given


def test_what_is_on_the_card_needs_no_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(monkeypatch)
    there = torch.zeros(1, device="meta")
    assert Uploads(torch.device("cuda", 0))([there])[0] is there
    assert cuda.logged() == []
