"""What one bank costs to make, in a process that does nothing else; see `benchmarks.complexity`."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index import (
    BankSpec,
    DescriptorSpec,
    PatchDescriptor,
    PatchStore,
    PatchStream,
    compress_store,
    initial_descriptor,
    patch_stream,
    set_threads,
)

Method = Literal["ema", "mean", "kmeans", "hybrid", "coreset", "full", "padim"]
PADIM_FEATURES = 100
"""PaDiM's for ResNet18."""
WARM_UP_IMAGES = 2
_SAMPLE_PATCHES = 8192
"""Held by `ema`, `mean`, `kmeans` and `hybrid`: fewer than by default, so that the bound is reached at few images."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a process measured."""

    seconds: float
    peak_bytes: int
    bank_bytes: int


def measure_cell(method: Method, path: Path, images: int, share: float, seed: int, threads: int) -> Cell:
    """One cell, in a process of its own."""
    set_threads(threads)
    store = PatchStore.open(path)
    phi = initial_descriptor(
        DescriptorSpec(init="identity", standardise=False), store.header.channels, None, seed=seed
    )
    _make_bank(method, store, WARM_UP_IMAGES, phi, share, seed)
    before = _mark_peak()
    started = time.perf_counter()
    bank_bytes = _make_bank(method, store, images, phi, share, seed)
    seconds = time.perf_counter() - started
    return Cell(seconds=seconds, peak_bytes=_peak_bytes() - before, bank_bytes=bank_bytes)


def _make_bank(
    method: Method, store: PatchStore, images: int, phi: PatchDescriptor, share: float, seed: int
) -> int:
    """Make a bank of the first images; its bytes."""
    if method == "padim":
        depth = phi.width
        chosen = np.random.default_rng(seed).choice(depth, min(PADIM_FEATURES, depth), replace=False)
        return sum(part.nbytes for part in padim_gaussian(patch_stream(store, range(images), phi), chosen))
    share_or_none = share if method == "coreset" else None
    spec = BankSpec(method=method, size=None, share=share_or_none, sample_patches=_SAMPLE_PATCHES)
    return compress_store(store, range(images), phi, spec, seed=seed)[0].nbytes


def _mark_peak() -> int:
    """Set the kernel's mark of the largest resident size back to now; gives it in bytes."""
    with suppress(OSError):  # where this is forbidden, growth below the former peak does not show
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell a process's largest resident size (VmHWM)")


def padim_gaussian(
    stream: PatchStream, features: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """PaDiM's model: mean (h*w, d) and covariance (h*w, d, d) + 0.01 I of some features at each position.

    Sums are taken around the first image, so that float32 keeps its digits.
    """
    count = 0
    for _, _, patches in stream():
        x = torch.from_numpy(patches[:, features])  # (h*w, d)
        if count == 0:
            shift, total = x.clone(), torch.zeros_like(x)
            products = torch.zeros(*x.shape, x.shape[1])
        x = x - shift
        total += x
        products.baddbmm_(x.unsqueeze(2), x.unsqueeze(1))
        count += 1
    mean = total / count
    products.sub_(torch.einsum("ti,tj->tij", total, mean)).div_(count - 1)
    products += 0.01 * torch.eye(len(features))
    return (mean + shift).numpy(), products.numpy()


def padim_bytes(positions: int, features: int) -> int:
    """Of mean and covariance, float32."""
    return positions * (features + features**2) * 4
