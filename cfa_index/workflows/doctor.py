"""Is this machine fit for scoring, how fast is it, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cfa_index.devices import multiplies_bf16
from cfa_index.events import Listener, ignore
from cfa_index.specs import FeatureSpec
from cfa_index.workflows import doctor_libraries as libraries, doctor_machine as system
from cfa_index.workflows.doctor_advice import (
    CARD_BATCH,
    Advice,
    advise,
    batch_size_for,
    on_card,
    threads_for,
)
from cfa_index.workflows.doctor_card import recommended_footprint
from cfa_index.workflows.doctor_facts import Disk, Machine, Measured
from cfa_index.workflows.doctor_machine import known
from cfa_index.workflows.doctor_measure import measure
from cfa_index.workflows.doctor_remarks import Remark, remarks

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `examine` found.

    Attributes:
        machine: the facts; None among them is unknown.
        measured: None if nothing was to be measured.
        remarks: the worst first.
        advice: the command that suits this machine.
    """

    machine: Machine
    measured: Measured | None
    remarks: tuple[Remark, ...]
    advice: Advice

    @property
    def is_usable(self) -> bool:
        """Whether a run can succeed."""
        return not any(remark.stops for remark in self.remarks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "usable": self.is_usable,
            "machine": self.machine.to_dict(),
            "measured": self.measured.to_dict() if self.measured else None,
            "remarks": [asdict(remark) for remark in self.remarks],
            "advice": self.advice.to_dict(),
        }


def examine(
    folders: Mapping[str, Path],
    *,
    backbone: str = FeatureSpec().backbone,
    seconds: float = 10.0,
    output: Path | None = None,
    listener: Listener = ignore,
) -> Diagnosis:
    """Look at this machine, and measure it. Nothing is downloaded, nothing is left on a disk.

    A fact that cannot be found is None and stops nothing.

    Args:
        folders: those that runs write to, by what they are for; they need not exist.
        backbone: whose weights are looked for, and that is measured with random ones.
        seconds: for measuring; 0 for not at all. The folders' disks take up to a second each beside that.
        output: target folder for the advised command.
        listener: told of progress.

    Raises:
        SpecError: there is no such backbone.
        WeightsError: a backbone of timm, which is not installed.
    """
    weights = libraries.weights(backbone)
    graphics = libraries.graphics()
    if on_card(graphics):
        graphics = replace(graphics, needed=known(recommended_footprint, backbone, CARD_BATCH))
    device = torch.device("cuda", 0) if on_card(graphics) else torch.device("cpu")
    machine = Machine(
        versions=libraries.versions(),
        faiss_packages=known(libraries.faiss_packages),
        extras=known(libraries.extras),
        fast_jpeg=known(libraries.fast_jpeg),
        processor=system.processor(),
        threads=libraries.threads(),
        graphics=graphics,
        bf16=known(multiplies_bf16, device),
        compiler=libraries.compiler(),
        weights=weights,
        memory=system.memory(),
        disks=_disks(folders, measured=seconds > 0),
        open_files=known(system.open_files),
        shm_bytes=known(system.shm_bytes),
    )
    measured = None
    if seconds > 0:
        measured = measure(
            backbone=backbone,
            batch_size=batch_size_for(machine),
            device=device,
            bf16=bool(machine.bf16),
            threads=threads_for(machine),
            seconds=seconds,
            listener=listener,
        )
    return Diagnosis(
        machine=machine,
        measured=measured,
        remarks=remarks(machine, measured, backbone),
        advice=advise(machine, measured, output),
    )


def _disks(folders: Mapping[str, Path], *, measured: bool) -> tuple[Disk, ...]:
    """Each file system is measured once."""
    speeds: dict[int, float | None] = {}
    found = []
    for role, folder in folders.items():
        device = known(_device_number, folder)
        one = system.disk(role, folder, measure=measured and device not in speeds)
        if device is not None:
            speeds.setdefault(device, one.write_bytes_per_s)
            one = replace(one, write_bytes_per_s=speeds[device])
        found.append(one)
    return tuple(found)


def _device_number(folder: Path) -> int:
    return system.nearest_folder(folder).stat().st_dev
