"""From facts to what is right and wrong with a machine, each with its remedy: looks at nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cfa_index.footprint import in_words
from cfa_index.workflows.doctor_advice import (
    CARD_BATCH,
    GIB,
    GOOD_MEMORY,
    PAYS,
    SMALL_BATCH,
    threads_for,
    usable_rates,
)
from cfa_index.workflows.doctor_facts import Disk, Graphics, Machine, Measured

Level = Literal["ok", "note", "problem"]

_LEVELS: tuple[Level, ...] = ("problem", "note", "ok")
_LEAST_MEMORY = GIB
_LEAST_SPACE, _GOOD_SPACE = GIB, 10 * GIB
_SLOW_BYTES_PER_S = 20e6
_FEW_FILES = 1024
_BUSY = 0.8
_RAY_SHM_BYTES = GIB


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One thing about the machine.

    Attributes:
        level: `ok`; `note`: costs time, or one should know it; `problem`: something does not work.
        topic: what it is about, in a word or two.
        text: what was found.
        remedy: what to do; "" where nothing has to be done.
        stops: whether no run can succeed like this.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""
    stops: bool = False


def remarks(machine: Machine, measured: Measured | None, backbone: str) -> tuple[Remark, ...]:
    """What is right and wrong, the worst first; a fact that is unknown is no fault.

    Args:
        machine: what is there.
        measured: None without a measurement.
        backbone: whose weights will be needed.
    """
    found = [
        *_libraries(machine),
        *_processor(machine),
        *_threads(machine),
        *_graphics(machine),
        *_bf16(machine, measured),
        *_compiler(machine),
        *_weights(machine, backbone),
        *_memory(machine),
        *(remark for disk in machine.disks for remark in _disk(disk)),
        *_limits(machine),
        *(_speed(measured) if measured else ()),
    ]
    return tuple(sorted(found, key=lambda one: _LEVELS.index(one.level)))


def _libraries(machine: Machine) -> Iterator[Remark]:
    missing = [name for name, version in machine.versions.items() if version is None]
    if missing:
        yield Remark(
            level="problem",
            topic="libraries",
            text=f"not found: {', '.join(missing)}",
            remedy="pip install --force-reinstall cfa-index",
            stops=True,
        )
    else:
        yield Remark(level="ok", topic="libraries", text="all that cfa-index needs is installed")
    if machine.faiss_packages and len(machine.faiss_packages) > 1:
        yield Remark(
            level="problem",
            topic="FAISS",
            text=f"{' and '.join(machine.faiss_packages)} are both installed and overwrite each other",
            remedy=f"pip uninstall -y {' '.join(machine.faiss_packages)}, then install one of them",
        )
    if machine.fast_jpeg is False:
        yield Remark(
            level="note",
            topic="JPEG",
            text="Pillow decodes JPEG without libjpeg-turbo, several times slower",
            remedy="install Pillow's own wheel: pip install --force-reinstall --only-binary :all: pillow",
        )


def _processor(machine: Machine) -> Iterator[Remark]:
    cpu = machine.processor
    if cpu.features is not None:
        if not {"avx2", "asimd"}.intersection(cpu.features):
            yield Remark(
                level="note",
                topic="CPU",
                text="neither AVX2 nor NEON: torch and FAISS are many times slower",
                remedy="use a newer machine, or let a virtual machine pass the host's CPU features through",
            )
        else:
            yield Remark(level="ok", topic="CPU", text=" ".join(cpu.features))
    if cpu.usable is not None and cpu.usable < 1:
        yield Remark(
            level="note",
            topic="cores",
            text=f"the control group grants {cpu.usable:g} of a core: work stops and waits in every period",
            remedy="give the container a whole core or more, such as docker run --cpus 2",
        )


def _threads(machine: Machine) -> Iterator[Remark]:
    wanted, usable = machine.threads.torch, machine.processor.usable
    if wanted is not None and usable is not None and wanted > max(1.0, usable):
        yield Remark(
            level="note",
            topic="threads",
            text=f"torch would use {wanted} threads on {usable:g} usable cores",
            remedy=f"give --threads {threads_for(machine)}, or set OMP_NUM_THREADS",
        )
    if machine.threads.one_pool is False:
        yield Remark(
            level="note",
            topic="OpenMP",
            text="torch and FAISS have a pool of threads each, which wait for each other: small searches take longer",
            remedy="install both from PyPI's wheels, or set OMP_WAIT_POLICY=PASSIVE",
        )
    elif machine.threads.one_pool:
        yield Remark(level="ok", topic="OpenMP", text="torch and FAISS share one pool of threads")


def _graphics(machine: Machine) -> Iterator[Remark]:
    cards = machine.graphics
    if cards.torch and cards.faiss:
        yield Remark(level="ok", topic="GPU", text=f"torch and FAISS both see {describe_card(cards)}")
        yield from _card_memory(cards)
    elif cards.torch and cards.faiss == 0:
        has_gpu_build = bool({"faiss-gpu", "faiss-gpu-cuvs"}.intersection(machine.faiss_packages or ()))
        yield Remark(
            level="problem",
            topic="GPU",
            text=f"torch sees {cards.torch[0]}, FAISS sees no card: --device auto stays on the CPU",
            remedy="update NVIDIA's driver to what this faiss-gpu was built for"
            if has_gpu_build
            else "pip uninstall -y faiss-cpu && pip install faiss-gpu",
        )
    elif cards.faiss and cards.torch is not None:
        yield Remark(
            level="problem",
            topic="GPU",
            text=f"FAISS sees {cards.faiss} card(s), torch none: --device auto stays on the CPU",
            remedy="install torch with CUDA: its pages name the command for your driver (pytorch.org)"
            if cards.torch_cuda == ""
            else f"update NVIDIA's driver: this torch is built for CUDA {cards.torch_cuda}",
        )
    elif cards.driver and cards.torch == () and cards.faiss == 0:
        yield Remark(
            level="problem",
            topic="GPU",
            text="NVIDIA's driver is loaded, but neither torch nor FAISS sees a card",
            remedy="try nvidia-smi; in a container pass the card through (docker run --gpus all)",
        )
    elif cards.torch == ():
        yield Remark(level="ok", topic="GPU", text="none: everything runs on the CPU")


def describe_card(cards: Graphics) -> str:
    """torch's cards by name; of the first what is known of it."""
    names = ", ".join(cards.torch or ())
    capability = f", compute capability {cards.capability}" if cards.capability else ""
    if cards.free_bytes is None or cards.memory_bytes is None:
        return names + capability
    free, total = in_words(cards.free_bytes), in_words(cards.memory_bytes)
    return f"{names}{capability}, {free} of {total} free"


def _card_memory(cards: Graphics) -> Iterator[Remark]:
    needed, free = cards.needed, cards.free_bytes
    if needed is None or free is None:
        return
    text = f"a model of the recommended settings in batches of {CARD_BATCH} takes {needed.describe()}"
    if needed.total <= free:
        yield Remark(level="ok", topic="card memory", text=f"{text} at least: it fits")
    else:
        advice = dict.fromkeys(part.lower for part in needed.largest(2))
        yield Remark(
            level="note",
            topic="card memory",
            text=f"{text}, {in_words(free)} are free",
            remedy=", ".join([*advice, "or end other programs on the card"]),
        )


def _bf16(machine: Machine, measured: Measured | None) -> Iterator[Remark]:
    scored = usable_rates(measured.scored_per_s) if measured else {}
    if "fp32" in scored and "bf16" in scored:
        ratio = scored["bf16"] / scored["fp32"]
        worth = (
            "scores change a little: compare them once on your own images"
            if ratio >= PAYS
            else "not worth it"
        )
        yield Remark(level="ok", topic="bf16", text=f"{ratio:.1f} x as fast as fp32 here; {worth}")
    elif machine.bf16:
        yield Remark(level="ok", topic="bf16", text="multiplied in hardware: --precision bf16 is possible")
    elif machine.bf16 is False:
        yield Remark(level="ok", topic="bf16", text="would be imitated: --precision bf16 is refused")


def _compiler(machine: Machine) -> Iterator[Remark]:
    compiler = machine.compiler
    if compiler.path is None:
        yield Remark(
            level="note",
            topic="compiler",
            text="no C++ compiler: --compile is not possible",
            remedy="apt-get install g++ (or name one in CXX)",
        )
    elif compiler.has_headers is False:
        yield Remark(
            level="note",
            topic="compiler",
            text="no Python.h: --compile is not possible",
            remedy="apt-get install python3-dev",
        )
    else:
        yield Remark(
            level="ok",
            topic="compiler",
            text=f"{compiler.path}: --compile is possible, and pays from some thousand images on",
        )


def _weights(machine: Machine, backbone: str) -> Iterator[Remark]:
    weights = (machine.weights or {}).get(backbone)
    if weights is None:
        return
    if weights.file is not None:
        yield Remark(level="ok", topic="weights", text=f"of {backbone} are here")
    else:
        yield Remark(
            level="note",
            topic="weights",
            text=f"of {backbone} are not here; build downloads them, score reads them from the model",
            remedy=weights.missing or "without a network hand them to build with --weights FILE",
        )


def _memory(machine: Machine) -> Iterator[Remark]:
    available = machine.memory.available
    if available is None:
        return
    text = f"{available / GIB:.1f} GiB available"
    if available < _LEAST_MEMORY:
        yield Remark(
            level="problem",
            topic="memory",
            text=f"{text}, too little to load wide_resnet50_2",
            remedy="end other programs, raise the container's limit, or build with --backbone efficientnet_lite0",
            stops=True,
        )
    elif available < GOOD_MEMORY:
        yield Remark(
            level="note",
            topic="memory",
            text=f"{text}, short for several workers",
            remedy=f"keep to --batch-size {SMALL_BATCH} and few --workers",
        )
    else:
        yield Remark(level="ok", topic="memory", text=text)


def _disk(disk: Disk) -> Iterator[Remark]:
    if disk.writable is False:
        yield Remark(
            level="problem",
            topic=disk.role,
            text=f"{disk.folder} cannot be written: full, read-only, or not allowed",
            remedy="give another folder, or change its owner or its mount",
            stops=True,
        )
        return
    if disk.free_bytes is None:
        return
    text = f"{disk.free_bytes / GIB:.1f} GiB free for {disk.folder}"
    speed = disk.write_bytes_per_s
    if disk.free_bytes < _LEAST_SPACE:
        yield Remark(
            level="problem",
            topic=disk.role,
            text=text,
            remedy="free some space: a run stops when the disk is full, and resumes when it is not",
            stops=True,
        )
    elif disk.free_bytes < _GOOD_SPACE:
        yield Remark(
            level="note",
            topic=disk.role,
            text=text,
            remedy="see docs/operations.md for what maps and heatmaps take",
        )
    elif speed is not None and speed < _SLOW_BYTES_PER_S:
        yield Remark(
            level="note",
            topic=disk.role,
            text=f"{text}, written at only {speed / 1e6:.0f} MB/s",
            remedy="use a local disk, or leave --maps and --heatmaps out",
        )
    else:
        yield Remark(level="ok", topic=disk.role, text=text)


def _limits(machine: Machine) -> Iterator[Remark]:
    if machine.open_files is not None and machine.open_files[0] < _FEW_FILES:
        yield Remark(
            level="note",
            topic="open files",
            text=f"at most {machine.open_files[0]}",
            remedy=f"ulimit -n {max(_FEW_FILES, min(4096, machine.open_files[1]))}, or LimitNOFILE= of a unit",
        )
    if machine.shm_bytes is not None and machine.shm_bytes < _RAY_SHM_BYTES:
        yield Remark(
            level="note",
            topic="/dev/shm",
            text=f"{machine.shm_bytes / (1 << 20):.0f} MiB: too small for --engine ray",
            remedy="docker run --shm-size 2g",
        )


def _speed(measured: Measured) -> Iterator[Remark]:
    if measured.cpu_share < _BUSY:
        yield Remark(
            level="note",
            topic="measurement",
            text=f"one thread got {measured.cpu_share:.0%} of a core: the figures are too low",
            remedy="measure again when nothing else runs, or raise the container's limit",
        )
    if not measured.scored_per_s.get("fp32"):
        yield Remark(
            level="note",
            topic="measurement",
            text=f"{measured.backbone} could not be run",
            remedy="the notice above says why",
        )
