"""Between host and device without either waiting for the other. All of CUDA's streams, events and pinned memory are here.

A copy overlaps with computing where its host memory is pinned, it is `non_blocking`, and it runs on a stream of its
own (PyTorch docs, "CUDA semantics": asynchronous execution; use pinned memory buffers). What has to live until when:

- The pinned side of a copy may be freed at once: its allocator gives the block out again only after an event that
  the copy recorded (ATen/cuda/CachingHostAllocator.h, pytorch #130785). It may not be written to before.
- The device side belongs to the stream that it was allocated on; `record_stream` tells the allocator of the other
  (docs of `Tensor.record_stream`). One stream waits for an event of the other before it touches the memory.

On the CPU all of it hands the tensors through. None is for several threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")


class Uploads:
    """Host tensors to a device, a batch a call.

    Args:
        device: where they are needed.
        under_way: batches at most that are on their way or being computed with, and so in the device's memory. A
            call waits until the work queued for the batch before these has ended; it waits for nothing else.
    """

    def __init__(self, device: torch.device, *, under_way: int = 2) -> None:
        self._device = device
        self._most = under_way
        self._stream = _stream(device)
        self._under_way: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory to fill and then send, not initialised; pinned for a card.

        A new one for every batch: the last one may still be read by its copy. The allocator keeps them, and serves
        any thread.
        """
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self._stream is not None)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors on the device, to be used on its current stream; those that are there already as they are.

        A pinned tensor must not be written to afterwards; of another a pinned copy is made first.
        """
        if self._stream is None:
            return [tensor.to(self._device) for tensor in tensors]
        if all(tensor.device.type != "cpu" for tensor in tensors):
            return list(tensors)
        current = torch.cuda.current_stream(self._device)
        sources = [
            tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor
            for tensor in tensors
        ]
        self._bound(current, sources)
        with torch.cuda.stream(self._stream):
            sent = [source.to(self._device, non_blocking=True) for source in sources]
        current.wait_stream(self._stream)
        for tensor, source in zip(sent, sources, strict=True):
            if tensor is not source:
                tensor.record_stream(current)
        return sent

    def _bound(self, current: torch.cuda.Stream, sources: list[Tensor]) -> None:
        """Note a batch, before anything is queued for it, and wait until no more than `under_way` are left.

        Without it the host would queue, and allocate, far ahead of the card. An event behind everything that was
        queued before a batch says that the batches before it have ended, their copies too. The sources are held
        until then: memory that something else pinned is unknown to the allocator.
        """
        begun = _event()
        current.record_event(begun)
        self._under_way.append((begun, sources))
        if len(self._under_way) > self._most:
            self._under_way[1][0].synchronize()
            self._under_way.popleft()


@dataclass(frozen=True, eq=False)
class Pending:
    """Tensors on their way to the host.

    Attributes:
        tensors: on the host, filled once `copied` has occurred.
        copied: None where they are there already.
    """

    tensors: list[Tensor]
    copied: torch.cuda.Event | None

    def result(self) -> list[Tensor]:
        """The tensors, once their copy has ended; what was queued after it is not waited for.

        From a card they lie in pinned memory; see `kept`.
        """
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensors

    def kept(self) -> list[Tensor]:
        """`result` in ordinary memory, for what its user may keep: of pinned memory a machine has little."""
        return self.result() if self.copied is None else [tensor.clone() for tensor in self.result()]


class Downloads:
    """Results to the host, read later.

    Args:
        device: where they are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream(device)
        self._device = device

    def start(self, tensors: Sequence[Tensor]) -> Pending:
        """Begin to copy what the current stream computes into these tensors; they may be dropped, not changed."""
        if self._stream is None:
            return Pending([tensor.detach().cpu() for tensor in tensors], None)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # With the layout of the source, so that the copy is one piece.
            found = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
            for target, tensor in zip(found, tensors, strict=True):
                target.copy_(tensor.detach(), non_blocking=True)
                tensor.record_stream(self._stream)
            copied = _event()
            self._stream.record_event(copied)
        return Pending(found, copied)

    def behind(self, queued: Iterable[_Item]) -> Iterator[_Item]:
        """Items whose making queues work for the device, each given once the next one is made.

        So the device has the next batch to work on while the host reads the results of the last one. On the CPU,
        where the making is the work, each is given at once.
        """
        held: deque[_Item] = deque()
        for item in queued:
            held.append(item)
            if self._device.type == "cpu" or len(held) > 1:
                yield held.popleft()
        yield from held


class Aside:
    """A stream beside the current one, for a library that writes into new tensors without waiting for a stream.

    nvJPEG's hardware does (torchcodec #1634; pytorch/vision #9606: 199 of 200 tensors of others were overwritten).
    A block that the allocator gives out again on the current stream may still be read by what is queued there. Here
    it comes from the memory of this stream, on which nothing is left to do; what others read of that memory,
    `record_stream` keeps until it is read.

    Args:
        device: where the tensors are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device)

    def __call__(self, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What `make` makes, to be used on the current stream; waits for what the last call has queued."""
        if self._stream is None:
            return make()
        current = torch.cuda.current_stream(self._device)
        self._stream.synchronize()
        with torch.cuda.stream(self._stream):
            made = make()
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(current)
        return made


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies; None where there are none."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves its constructor untyped


def _event() -> torch.cuda.Event:
    """An event; the host sleeps until it occurs instead of spinning, since images are decoded meanwhile."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # as above
