"""What a training needs to go on after it was killed: one safetensors file, replaced whole every epoch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cfa_index.backbones import sha256_of_tensors
from cfa_index.files import write_bytes


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after an epoch.

    The order of the images is drawn anew from (seed, epoch), so no random state is kept.

    Attributes:
        descriptor: state dict of phi.
        radius: r, ().
        optimizer: by parameter number, the optimiser's tensors by name.
        log: a plain row an epoch.
    """

    descriptor: Mapping[str, Tensor]
    radius: Tensor
    optimizer: Mapping[int, Mapping[str, Tensor]]
    log: Sequence[Mapping[str, Any]]


def write_checkpoint(folder: Path, identity: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Replace the checkpoint. `identity` says what it belongs to. Raises OutputError."""
    tensors = {f"descriptor.{name}": tensor for name, tensor in checkpoint.descriptor.items()}
    tensors["radius"] = checkpoint.radius
    for number, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        **identity,
        "log": json.dumps(list(checkpoint.log)),
        "tensors_sha256": sha256_of_tensors(flat),
    }
    write_bytes(folder / "state.safetensors", save(flat, metadata=metadata))


def read_checkpoint(folder: Path, identity: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint in a folder; None where there is none, or it belongs to another training."""
    file = folder / "state.safetensors"
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if {name: metadata.get(name) for name in identity} != dict(identity):
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:  # cut short by something other than us: start over
        return None
    if metadata.get("tensors_sha256") != sha256_of_tensors(tensors):
        return None
    optimizer: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            optimizer.setdefault(int(number), {})[key] = tensor
    return Checkpoint(
        descriptor={
            name.removeprefix("descriptor."): tensor
            for name, tensor in tensors.items()
            if name.startswith("descriptor.")
        },
        radius=tensors["radius"],
        optimizer=optimizer,
        log=json.loads(metadata["log"]),
    )


def remove_checkpoint(folder: Path) -> None:
    """Delete the checkpoint of a training that is done."""
    shutil.rmtree(folder, ignore_errors=True)
