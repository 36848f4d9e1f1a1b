"""phi, the loss and the optimiser: one update, and what a training that was killed needs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfa_index.bank import MemoryBank
from cfa_index.descriptor import PatchDescriptor
from cfa_index.hypersphere import HypersphereLoss, neighbor_sq_distances
from cfa_index.specs import TrainSpec
from cfa_index.store import PatchStore
from cfa_index.workflows.checkpoint import Checkpoint
from cfa_index.workflows.extract import inspected_mask

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
    """

    def __init__(self, descriptor: PatchDescriptor, bank: MemoryBank, spec: TrainSpec, radius: float) -> None:
        self.descriptor = descriptor.train()
        self.bank = bank
        self.spec = spec
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
        )

    def step(self, levels: Sequence[Tensor], inspected: Tensor | None = None) -> tuple[float, float, float]:
        """One update from a batch.

        Args:
            levels: pyramids (B, C_l, h_l, w_l).
            inspected: bool (B, h*w), the patches that count; None for all of them.

        Returns:
            L_att, L_rep and the mean rooted distance to the K nearest memories.
        """
        adapted = self.descriptor(levels)
        patches = adapted.flatten(0, 1) if inspected is None else adapted[inspected]  # (n, D')
        found = self.bank.search(patches.detach(), self.spec.attract + self.spec.repel)
        sq_distances = neighbor_sq_distances(patches, self.bank.tensor, found.ids, found.sq_distances)
        terms = self.loss(sq_distances)
        self.optimizer.zero_grad(set_to_none=True)
        (terms.total * self.spec.loss_scale).backward()
        self.optimizer.step()
        distance = found.sq_distances[:, : self.spec.attract].sqrt().mean()
        return float(terms.attraction.detach()), float(terms.repulsion.detach()), float(distance)


def median_radius(
    store: PatchStore, rows: Sequence[int], phi: PatchDescriptor, bank: MemoryBank, spec: TrainSpec
) -> float:
    """Root of the median squared distance of good patches to their K-th memory, under phi."""
    picked = rows[:: max(1, len(rows) // _RADIUS_IMAGES)][:_RADIUS_IMAGES]
    kth = []
    for row in picked:
        with torch.inference_mode():
            patches = phi([level.to(bank.device) for level in store.read([row])])
            patches = patches[inspected_mask(store, [row])]
        kth.append(bank.search(patches, spec.attract).sq_distances[:, -1])
    # Where every patch is a memory the median is zero, and r = 0 has no gradient.
    return max(float(torch.cat(kth).median().sqrt()), _LEAST_RADIUS)


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
