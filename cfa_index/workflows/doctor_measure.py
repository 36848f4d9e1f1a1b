"""A few seconds of work: decoding made-up images on one core, and the backbone's forward pass."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from cfa_index.backbones import Backbone, backbone_entry, load_backbone
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.images import decode, square_pixels
from cfa_index.specs import FeatureSpec
from cfa_index.workflows.doctor_facts import JPEG, PNG, Measured

Rates: TypeAlias = dict[str, float | None]

_SIZES_PX = {PNG: 300, JPEG: 1024}
_DECODE_SHARE, _FORWARD_SHARE = 0.1, 0.3
"""Of the given seconds, each kind of file and each precision; loading the network takes about the rest."""


def measure(
    *,
    backbone: str,
    batch_size: int,
    device: torch.device,
    bf16: bool,
    threads: int,
    seconds: float,
    listener: Listener = ignore,
) -> Measured:
    """Decode and run the backbone with random weights for about `seconds` in all.

    What fails, such as a backbone whose package is not installed or that does not fit into memory, is a
    notice to the listener and None in the result.

    Args:
        backbone: its name.
        batch_size: images a forward pass.
        device: of the forward pass.
        bf16: whether to measure that precision, too.
        threads: of the forward pass on the CPU; the process's own number is back afterwards.
        seconds: about 10 tell enough; the network is loaded beside that.
        listener: told of progress.
    """
    features = FeatureSpec(backbone=backbone, strides=_strides(backbone))
    network = _Network(features, batch_size, device)
    precisions = ("fp32", "bf16") if bf16 else ("fp32",)
    with stage(listener, "measure", len(_SIZES_PX) + len(precisions), "steps") as advance, _using(threads):
        wanted_s = used_s = 0.0

        def rates(
            names: Iterable[str], rate: Callable[[str, float], float], share: float, busy: int
        ) -> Rates:
            nonlocal wanted_s, used_s
            found: Rates = {}
            for name in names:
                wall, cpu = time.perf_counter(), time.process_time()
                try:
                    found[name] = rate(name, share * seconds)
                except Exception as error:  # whatever torch, CUDA or a codec raises: the rest is worth having
                    listener(Notice(message=f"{name} was not measured: {' '.join(str(error).split())[:200]}"))
                    found[name] = None
                wanted_s += busy * (time.perf_counter() - wall)
                used_s += time.process_time() - cpu if busy else 0.0
                advance()
            return found

        decoded = rates(_SIZES_PX, partial(_decode_rate, features), _DECODE_SHARE, 1)
        forward = rates(precisions, network.rate, _FORWARD_SHARE, threads if device.type == "cpu" else 0)
    return Measured(
        backbone=backbone,
        size_px=features.size_px,
        batch_size=batch_size,
        device=str(device),
        threads=threads,
        decoded_per_s=decoded,
        forward_per_s=forward,
        cpu_share=used_s / wanted_s,
    )


def made_up_file(kind: str, side_px: int) -> bytes:
    """A woven texture with a sensor's noise, RGB, as a PNG or a JPEG of quality 90; always the same bytes."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[0:side_px, 0:side_px]
    grey = 120 + 30 * (np.sin(x / 9.0) + np.sin(y / 15.0)) + draw.normal(0, 3, (side_px, side_px))
    pixels = np.stack([grey, grey * 0.9, grey * 0.8], axis=2).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, "PNG" if kind == PNG else "JPEG", **({} if kind == PNG else {"quality": 90})
    )
    return file.getvalue()


def _strides(backbone: str) -> tuple[int, ...]:
    """The usual levels where the network has them."""
    own = tuple(backbone_entry(backbone).channels)
    return tuple(stride for stride in FeatureSpec().strides if stride in own) or own


def _decode_rate(features: FeatureSpec, kind: str, seconds: float) -> float:
    content = made_up_file(kind, _SIZES_PX[kind])
    return _rate(lambda: square_pixels(decode(content), features), 1, seconds)


class _Network:
    """The backbone with random weights, loaded when it is first run."""

    def __init__(self, features: FeatureSpec, batch_size: int, device: torch.device) -> None:
        self._features, self._batch_size, self._device = features, batch_size, device
        self._backbone: Backbone | None = None

    def rate(self, precision: str, seconds: float) -> float:
        """Images a second of the forward pass."""
        if self._backbone is None:
            loaded = load_backbone(self._features.backbone, self._features.strides, weights="random")
            self._backbone = loaded.to(self._device)
        backbone, device, side = self._backbone, self._device, self._features.size_px
        pixels = torch.zeros((self._batch_size, 3, side, side), dtype=torch.uint8, device=device)

        def forward() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                backbone.pyramid(pixels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return _rate(forward, self._batch_size, seconds)


def _rate(work: Callable[[], object], images: int, seconds: float) -> float:
    """Images a second of `work` after a first call, or of that one where it takes all of the time."""
    started = time.perf_counter()
    work()
    if (elapsed := time.perf_counter() - started) >= seconds:
        return images / elapsed
    done, started = 0, time.perf_counter()
    while True:
        work()
        done += images
        if (elapsed := time.perf_counter() - started) >= seconds:
            return done / elapsed


@contextmanager
def _using(threads: int) -> Iterator[None]:
    """So many threads of torch in the body."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
