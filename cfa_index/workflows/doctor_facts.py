"""What `doctor` finds out about a machine, as plain values. None is what could not be found: unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfa_index.footprint import Footprint


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The CPU, and how much of it this process may use.

    Attributes:
        model: as the system calls it.
        features: those of `CPU_FEATURES` that it has.
        logical: cores of the machine.
        affinity: cores that this process may run on.
        quota: cores' worth of time that its control group may use; infinity for no limit.
    """

    model: str | None
    features: tuple[str, ...] | None
    logical: int | None
    affinity: int | None
    quota: float | None

    @property
    def usable(self) -> float | None:
        """Cores' worth of time that this process gets at most."""
        known = [value for value in (self.affinity or self.logical, self.quota) if value is not None]
        return float(min(known)) if known else None


CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""As Linux names them: of x86, then of ARM."""
PNG, JPEG = "png_300px", "jpeg_1024px"
"""Kinds of files that are decoded for measuring."""


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Threads that the libraries would use, and whether FAISS works in torch's OpenMP pool."""

    torch: int | None
    faiss: int | None
    one_pool: bool | None


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """CUDA devices.

    Attributes:
        driver: whether NVIDIA's driver is loaded.
        torch: names of the devices that torch sees.
        torch_cuda: version of CUDA that torch was built for; "" for a build without.
        faiss: how many FAISS sees.
        memory_bytes, free_bytes: of torch's first device.
        capability: of that device, such as 8.9.
        faiss_cuda: version of CUDA's runtime that FAISS's package brings.
        needed: what a model of the recommended settings and its batches take of a card; None without one.
    """

    driver: bool | None
    torch: tuple[str, ...] | None
    torch_cuda: str | None
    faiss: int | None
    memory_bytes: int | None
    free_bytes: int | None = None
    capability: str | None = None
    faiss_cuda: str | None = None
    needed: Footprint | None = None


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """What `--compile` needs: a C++ compiler, and Python's headers."""

    path: str | None
    has_headers: bool | None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of one backbone: the file, None if it is not here; how to install the package that is missing."""

    file: Path | None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes; `limit` is that of the control group, None without one or where it is above `total`."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A target folder.

    Attributes:
        role: which option names it.
        folder: as given; it need not exist.
        writable: whether it, or the nearest folder above it that exists, can be written.
        free_bytes, total_bytes: of its file system.
        write_bytes_per_s: measured with a sync at the end; None when it was not measured.
    """

    role: str
    folder: Path
    writable: bool | None
    free_bytes: int | None
    total_bytes: int | None
    write_bytes_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All of it.

    Attributes:
        versions: of what cfa-index needs, by name; None for a library that is not there.
        faiss_packages: installed distributions that bring FAISS; two overwrite each other's files.
        extras: packages of each optional extra that are not installed.
        bf16: whether the device that `auto` takes multiplies bfloat16 in hardware.
        fast_jpeg: whether Pillow decodes JPEG with libjpeg-turbo.
        weights: by backbone.
        open_files: limits of this process, soft and hard.
        shm_bytes: size of /dev/shm.
    """

    versions: Mapping[str, str | None]
    faiss_packages: tuple[str, ...] | None
    extras: Mapping[str, tuple[str, ...]] | None
    fast_jpeg: bool | None
    processor: Processor
    threads: Threads
    graphics: Graphics
    bf16: bool | None
    compiler: Compiler
    weights: Mapping[str, Weights] | None
    memory: Memory
    disks: tuple[Disk, ...]
    open_files: tuple[int, int] | None
    shm_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; no limit of the control group is null there, as unknown is."""
        document = asdict(self)
        quota = self.processor.quota
        document["processor"]["quota"] = None if quota == float("inf") else quota
        document["processor"]["usable"] = self.processor.usable
        for disk in document["disks"]:
            disk["folder"] = str(disk["folder"])
        for weights in (document["weights"] or {}).values():
            weights["file"] = str(weights["file"]) if weights["file"] else None
        return document


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What this machine does in a few seconds.

    Attributes:
        backbone, size_px, batch_size, device: of the network, with random weights.
        threads: of the maths.
        decoded_per_s: images a second in one thread from a file's bytes to the network's square, by kind
            (`PNG`, `JPEG`); None where it failed.
        forward_per_s: images a second of the backbone alone on all usable cores or the card, by precision.
        scored_per_s: the same of the whole way from pixels to a score, with descriptor and bank of the
            recommended settings.
        cpu_share: CPU time of the decoding over its seconds: well below 1 on a busy machine.
    """

    backbone: str
    size_px: int
    batch_size: int
    device: str
    threads: int
    decoded_per_s: Mapping[str, float | None]
    forward_per_s: Mapping[str, float | None]
    scored_per_s: Mapping[str, float | None]
    cpu_share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
