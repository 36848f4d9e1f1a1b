"""A few seconds of work: decoding made-up images on one core, the backbone's forward pass, whole scoring."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cfa_index.backbones import Backbone, backbone_entry, load_backbone
from cfa_index.bank import MemoryBank
from cfa_index.descriptor import initial_descriptor
from cfa_index.events import Listener, Notice, ignore, stage
from cfa_index.images import decode, frame_of, square_pixels
from cfa_index.scorer import Scorer
from cfa_index.specs import FeatureSpec, ModelSpec, Precision
from cfa_index.workflows.doctor_facts import JPEG, PNG, Measured

Name = TypeVar("Name", bound=str)

_SIZES_PX = {PNG: 300, JPEG: 1024}
_DECODE_SHARE, _MATHS_SHARE = 0.1, 0.15
"""Of the given seconds, for each measurement; loading the network takes about the rest."""


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
    features = FeatureSpec(backbone=backbone, strides=usual_strides(backbone))
    network = _Network(features, batch_size, device)
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if bf16 else ("fp32",)
    with (
        stage(listener, "measure", len(_SIZES_PX) + 2 * len(precisions), "steps") as advance,
        _using(threads),
    ):

        def rates(
            names: Iterable[Name], rate: Callable[[Name, float], float], share: float
        ) -> dict[str, float | None]:
            found: dict[str, float | None] = {}
            for name in names:
                try:
                    found[name] = rate(name, share * seconds)
                except Exception as error:  # whatever torch, CUDA or a codec raises: the rest is worth having
                    listener(Notice(message=f"{name} was not measured: {' '.join(str(error).split())[:200]}"))
                    found[name] = None
                advance()
            return found

        wall, cpu = time.perf_counter(), time.process_time()
        decoded = rates(_SIZES_PX, partial(_decode_rate, features), _DECODE_SHARE)
        cpu_share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        forward = rates(precisions, network.forward_rate, _MATHS_SHARE)
        scored = rates(precisions, network.scored_rate, _MATHS_SHARE)
    return Measured(
        backbone=backbone,
        size_px=features.size_px,
        batch_size=batch_size,
        device=str(device),
        threads=threads,
        decoded_per_s=decoded,
        forward_per_s=forward,
        scored_per_s=scored,
        cpu_share=cpu_share,
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


def usual_strides(backbone: str) -> tuple[int, ...]:
    """The usual levels where the network has them."""
    own = tuple(backbone_entry(backbone).channels)
    return tuple(stride for stride in FeatureSpec().strides if stride in own) or own


def _decode_rate(features: FeatureSpec, kind: str, seconds: float) -> float:
    content = made_up_file(kind, _SIZES_PX[kind])
    return _rate(lambda: square_pixels(decode(content), features), 1, seconds)


class _Network:
    """The backbone with random weights at each precision, loaded when it is first run, and a scorer over it."""

    def __init__(self, features: FeatureSpec, batch_size: int, device: torch.device) -> None:
        self._features, self._batch_size, self._device = features, batch_size, device
        self._backbones: dict[Precision, Backbone] = {}

    def forward_rate(self, precision: Precision, seconds: float) -> float:
        """Images a second of the forward pass."""
        backbone, pixels = self._backbone(precision), self._pixels()
        return self._rate(lambda: backbone.pyramid(pixels), seconds)

    def scored_rate(self, precision: Precision, seconds: float) -> float:
        """Images a second from pixels to scores; descriptor and bank are drawn, of the recommended sizes."""
        backbone, pixels, spec = self._backbone(precision), self._pixels(), ModelSpec()
        drawn = replace(spec.descriptor, init="he", standardise=False)
        descriptor = initial_descriptor(drawn, backbone.channels, None, seed=0)
        memories = spec.bank.memories(self._features.patches_per_image)
        vectors = np.random.default_rng(0).standard_normal((memories, descriptor.width), dtype=np.float32)
        bank = MemoryBank(vectors, self._device)
        scorer = Scorer(backbone, descriptor, bank, features=self._features, score=spec.score)
        side = self._features.size_px
        frames = [frame_of(side, side, self._features)] * self._batch_size
        return self._rate(lambda: scorer.score_pixels(pixels, frames), seconds)

    def _backbone(self, precision: Precision) -> Backbone:
        if not self._backbones:
            loaded = load_backbone(self._features.backbone, self._features.strides, weights="random")
            self._backbones["fp32"] = loaded.to(self._device)
        if precision not in self._backbones:
            self._backbones[precision] = copy.deepcopy(self._backbones["fp32"]).for_inference(precision)
        return self._backbones[precision]

    def _pixels(self) -> Tensor:
        shape = (self._batch_size, 3, self._features.size_px, self._features.size_px)
        return torch.zeros(shape, dtype=torch.uint8, device=self._device)

    def _rate(self, work: Callable[[], object], seconds: float) -> float:
        def whole() -> None:
            work()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return _rate(whole, self._batch_size, seconds)


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
