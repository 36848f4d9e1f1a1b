"""Banks that follow the grid: the paper's moving average and the published code's position means."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cfa_index.bank import kmeans
from cfa_index.compress.products import product_on
from cfa_index.compress.stream import OnStep, PatchStream, no_patches, nothing
from cfa_index.errors import BankError
from cfa_index.specs import CardSpec


def mean_bank(
    stream: PatchStream,
    memories: int,
    *,
    iterations: int,
    seed: int,
    device: torch.device = torch.device("cpu"),
    card: CardSpec = CardSpec(),
    on_image: OnStep = nothing,
) -> NDArray[np.float32]:
    """The published code's bank: mean of phi_0 at each position, then k-means down to M < h*w.

    Args:
        stream: whole grids only, as a position's mean needs them.
        memories: M.
        iterations, seed, device, card: of k-means.
        on_image: called after each image.

    Returns:
        (M, D') float32.

    Raises:
        BankError: M is larger than h*w, or the stream is empty.
    """
    total: NDArray[np.float64] | None = None
    count = 0
    for _, _, patches in stream():
        total = patches.astype(np.float64) if total is None else total + patches
        count += 1
        on_image()
    if total is None:
        raise no_patches()
    _check_fits(memories, len(total), "mean")
    means = (total / count).astype(np.float32)
    return kmeans(means, memories, iterations=iterations, seed=seed, device=device, card=card)


def ema_bank(
    stream: PatchStream,
    memories: int,
    *,
    beta: float,
    iterations: int,
    seed: int,
    device: torch.device = torch.device("cpu"),
    card: CardSpec = CardSpec(),
    on_image: OnStep = nothing,
) -> NDArray[np.float32]:
    """The paper's Algorithm 1: C_i = (1 - beta) C_{i-1} + beta C_i^NN, without replacement.

    C_0 is k-means of the first image's patches (at M = h*w these patches themselves). For every
    image, the first one too, each memory in turn takes its nearest patch that no other memory of
    this image has taken.

    Args:
        stream: the patches, in the order that the average moves.
        memories: M.
        beta: weight of an image.
        iterations, seed: of the k-means behind C_0.
        device: where k-means and the distances are computed; the patches are taken in turn on the host.
        card: what may be taken of a card.
        on_image: called after each image.

    Returns:
        (M, D') float32.

    Raises:
        BankError: M is larger than h*w, or the stream is empty.
    """
    bank: NDArray[np.float32] | None = None
    for _, _, patches in stream():
        if bank is None:
            _check_fits(memories, len(patches), "ema")
            bank = kmeans(patches, memories, iterations=iterations, seed=seed, device=device, card=card)
        taken = _take_in_turn(bank, patches, device)
        bank = ((1 - beta) * bank + beta * patches[taken]).astype(np.float32)
        on_image()
    if bank is None:
        raise no_patches()
    return bank


def _take_in_turn(
    bank: NDArray[np.float32], patches: NDArray[np.float32], device: torch.device
) -> NDArray[np.int64]:
    """For each memory in turn its nearest patch not yet taken: (M,) int64, all different."""
    # ||c||^2 is the same along a row and does not change which patch is nearest.
    sq_distances = (patches * patches).sum(axis=1) - 2 * product_on(device, bank, patches.T)  # (M, h*w)
    taken = np.empty(len(bank), dtype=np.int64)
    for memory, row in enumerate(sq_distances):
        taken[memory] = row.argmin()
        sq_distances[memory + 1 :, taken[memory]] = np.inf
    return taken


def _check_fits(memories: int, patches: int, method: str) -> None:
    if memories > patches:
        raise BankError(
            expected=f"at most h*w = {patches} memories with method '{method}'",
            got=str(memories),
            remedy="ask for fewer, or use --method hybrid",
        )
