"""phi after each epoch, kept beside the checkpoint until the training is done.

The published protocol takes the best epoch on the test set (PAPER, Protocol), so it needs them all. One
file an epoch is written whole, before the checkpoint that counts the epoch as done: a training that was
killed finds every epoch that its checkpoint speaks of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cfa_index.backbones import sha256_of_tensors
from cfa_index.descriptor import PatchDescriptor
from cfa_index.errors import StoreError
from cfa_index.files import write_bytes

_CHECKSUM = "tensors_sha256"


def keep_epoch(folder: Path, identity: Mapping[str, str], epoch: int, phi: PatchDescriptor) -> None:
    """Write phi after an epoch (from 1). `identity` says which training it belongs to. Raises OutputError."""
    tensors = {name: getattr(phi, name).detach().cpu().contiguous() for name in ("weight", "bias")}
    metadata = {**identity, _CHECKSUM: sha256_of_tensors(tensors)}
    write_bytes(_file(folder, epoch), save(tensors, metadata=metadata))


def are_kept(folder: Path, identity: Mapping[str, str], epochs: int) -> bool:
    """Whether the first `epochs` epochs are there, undamaged and of this training."""
    return all(_read(folder, identity, epoch) for epoch in range(1, epochs + 1))


def kept_epochs(folder: Path, identity: Mapping[str, str], epochs: int) -> dict[str, Tensor]:
    """The tensors of `epochs.safetensors`: weight and bias of the first `epochs` epochs.

    Raises:
        StoreError: one of them was removed or changed since it was written.
    """
    found: dict[str, Tensor] = {}
    for epoch in range(1, epochs + 1):
        tensors = _read(folder, identity, epoch)
        if not tensors:
            raise StoreError(
                expected=f"{_file(folder, epoch)} as it was written",
                got="no file, or one that was changed",
                remedy="give the same command again; what is damaged is trained anew",
            )
        found |= {f"{epoch:04d}.{name}": tensor for name, tensor in tensors.items()}
    return found


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.safetensors"


def _read(folder: Path, identity: Mapping[str, str], epoch: int) -> dict[str, Tensor]:
    """Weight and bias of an epoch; nothing where they cannot be used."""
    try:
        with safe_open(_file(folder, epoch), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return {}
    said = {name: metadata.get(name) for name in (*identity, _CHECKSUM)}
    return tensors if said == {**identity, _CHECKSUM: sha256_of_tensors(tensors)} else {}
