"""phi, the loss and the optimiser: one update, an epoch of them, and what a training that was killed needs.

On a card the host only gives orders: no update waits for its results. They are read one update late, when the
card has the next one to work on, so the host is never further ahead. A seed gives the same training there within
rounding and not bit by bit: the gradient of the bilinear upsampling is summed in no fixed order (torch's notes on
`use_deterministic_algorithms`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfa_index.bank import Bank, require_finite
from cfa_index.card_memory import card_memory, make_room
from cfa_index.descriptor import PatchDescriptor
from cfa_index.footprint import SMALLER_BATCH, training_footprint
from cfa_index.hypersphere import HypersphereLoss, neighbor_sq_distances
from cfa_index.specs import TrainSpec
from cfa_index.store import PatchStore, StoreHeader
from cfa_index.transfers import Downloads, Pending, Uploads
from cfa_index.workflows.checkpoint import Checkpoint
from cfa_index.workflows.train_batches import TrainBatch, train_batches

_RADIUS_IMAGES = 32
"""Images that decide the radius `median`: tens of thousands of patches."""
_LEAST_RADIUS = 1e-5
"""Where the paper starts."""


@dataclass(frozen=True, kw_only=True)
class EpochLog:
    """A row of train_log.csv; means over the epoch.

    Attributes:
        attraction, repulsion: L_att and L_rep.
        radius: r at the end of the epoch.
        neighbor_distance: rooted, mean over the K nearest.
    """

    epoch: int
    attraction: float
    repulsion: float
    radius: float
    neighbor_distance: float
    seconds: float


class Trainer:
    """phi, the loss and the optimiser; `step` is one update.

    Args:
        descriptor: phi, changed in place.
        bank: frozen.
        spec: the settings.
        radius: where r starts.

    Attributes:
        uploads, downloads: the ways to the bank's device and back.

    Raises:
        DeviceError: the bank is in shards over several cards.
    """

    def __init__(self, descriptor: PatchDescriptor, bank: Bank, spec: TrainSpec, radius: float) -> None:
        self.descriptor = descriptor.train()
        self.bank = bank
        self._memories = bank.tensor  # (M, D'); of a bank in shards no card has them all, and this says so
        self.spec = spec
        self.uploads, self.downloads = Uploads(bank.device), Downloads(bank.device)
        self.loss = HypersphereLoss(
            attract=spec.attract, repel=spec.repel, margin=spec.margin, radius=radius
        ).to(bank.device)
        self.loss.radius.requires_grad_(spec.learn_radius)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(descriptor.parameters()), "weight_decay": spec.weight_decay},
                # r moves through L_att and L_rep only (PAPER, Loss): no decay on it.
                {"params": [self.loss.radius], "weight_decay": 0.0},
            ],
            lr=spec.learning_rate,
            amsgrad=True,
            # A kernel a group instead of dozens. Its state is that of the others, but for where the number of
            # steps lies, which load_state_dict sees to: a checkpoint goes on wherever it is read.
            fused=True if bank.device.type != "cpu" else None,
        )

    def step(self, levels: Sequence[Tensor], inspected: Tensor | None = None) -> Tensor:
        """One update from a batch.

        Args:
            levels: pyramids (B, C_l, h_l, w_l) on the bank's device.
            inspected: (n,) int64 on the same device, the patches of B*h*w that count, each once; None for all
                of them. Of a mask, the host would have to ask a card how many they are.

        Returns:
            (4,) float32 on the device: L_att, L_rep, the mean rooted distance to the K nearest memories, and r
            after the update. On a card NaN where a patch was not finite.

        Raises:
            CardMemoryError: a card's memory runs out.
        """
        with card_memory(self.bank.device, f"training on {len(levels[0])} images", lower=SMALLER_BATCH):
            patches = _patches(self.descriptor, levels, inspected)
            found = self.bank.search(patches.detach(), self.spec.attract + self.spec.repel)
            sq_distances = neighbor_sq_distances(patches, self._memories, found.ids, found.sq_distances)
            terms = self.loss(sq_distances)
            self.optimizer.zero_grad(set_to_none=True)
            (terms.total * self.spec.loss_scale).backward()
            self.optimizer.step()
            distance = found.sq_distances[:, : self.spec.attract].sqrt().mean()
            figures = (terms.attraction, terms.repulsion, distance, self.loss.radius)
            return torch.stack([figure.detach() for figure in figures])

    def require_room(self, header: StoreHeader) -> None:
        """Refuse steps with pyramids of a store that a card has no room for.

        Raises:
            CardMemoryError: the message names what takes most.
        """
        needed = training_footprint(
            images=self.spec.batch_size,
            shapes=[(depth, *grid) for depth, grid in zip(header.channels, header.grids, strict=True)],
            width=self.descriptor.width,
            k=self.spec.attract + self.spec.repel,
        )
        make_room(needed, self.bank.device)


def train_epoch(
    trainer: Trainer, batches: Iterable[TrainBatch], *, epoch: int, advance: Callable[..., None]
) -> EpochLog:
    """Update with each batch.

    Args:
        trainer: changed in place.
        batches: on the device of its bank.
        epoch: its number, from 1.
        advance: told of each update's figures, see `events.stage`.

    Raises:
        BankError: a patch is not finite. On a card phi is no longer of use then.
    """
    started = time.perf_counter()

    def queued() -> Iterator[tuple[int, Pending]]:
        for batch in batches:
            yield len(batch.rows), trainer.downloads.start([trainer.step(batch.levels, batch.inspected)])

    totals, images = np.zeros(3), 0
    for views, pending in trainer.downloads.behind(queued()):
        figures = pending.result()[0].tolist()
        attraction, repulsion, distance, radius = figures
        require_finite(distance)  # what a search on the CPU says at once
        totals += np.asarray(figures[:3]) * views
        images += views
        advance(
            1,
            epoch=epoch,
            L_att=attraction,
            L_rep=repulsion,
            radius=radius,
            distance=distance,
            images=views,
        )
    means = totals / max(images, 1)
    return EpochLog(
        epoch=epoch,
        attraction=float(means[0]),
        repulsion=float(means[1]),
        radius=float(trainer.loss.radius.detach().cpu()),
        neighbor_distance=float(means[2]),
        seconds=time.perf_counter() - started,
    )


def median_radius(
    store: PatchStore, rows: Sequence[int], phi: PatchDescriptor, bank: Bank, spec: TrainSpec
) -> float:
    """Root of the median squared distance of good patches to their K-th memory, under phi.

    Raises:
        BankError: a patch is not finite.
    """
    picked = rows[:: max(1, len(rows) // _RADIUS_IMAGES)][:_RADIUS_IMAGES]
    kth = []
    for batch in train_batches(store, [[row] for row in picked], Uploads(bank.device)):
        with torch.inference_mode():
            patches = _patches(phi, batch.levels, batch.inspected)
        kth.append(bank.search(patches, spec.attract).sq_distances[:, -1])
    sq_distances = torch.cat(kth)
    median = torch.where(sq_distances.isfinite().all(), sq_distances.median(), torch.nan)
    radius = float(median.sqrt().cpu())
    require_finite(radius)
    # Where every patch is a memory the median is zero, and r = 0 has no gradient.
    return max(radius, _LEAST_RADIUS)


def _patches(phi: PatchDescriptor, levels: Sequence[Tensor], inspected: Tensor | None) -> Tensor:
    """The patches (n, D') that count, under phi."""
    patches: Tensor = phi(levels).flatten(0, 1)  # (B*h*w, D')
    return patches if inspected is None else patches.index_select(0, inspected)


def snapshot(trainer: Trainer, log: Sequence[EpochLog]) -> Checkpoint:
    """All that a training needs to go on."""
    return Checkpoint(
        descriptor=trainer.descriptor.state_dict(),
        radius=trainer.loss.radius.detach(),
        optimizer=trainer.optimizer.state_dict()["state"],
        log=[row.__dict__ for row in log],
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> list[EpochLog]:
    """Put a checkpoint's state into a trainer; gives the epochs that are done."""
    trainer.descriptor.load_state_dict(dict(checkpoint.descriptor))
    with torch.no_grad():
        trainer.loss.radius.copy_(checkpoint.radius)
    state = trainer.optimizer.state_dict()
    state["state"] = checkpoint.optimizer
    trainer.optimizer.load_state_dict(state)
    return [EpochLog(**row) for row in checkpoint.log]
