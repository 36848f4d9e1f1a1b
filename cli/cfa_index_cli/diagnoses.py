"""The tables of `cfa-index doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfa_index import Diagnosis
    from cfa_index_cli.console import Session

_UNKNOWN = "unknown"
_KINDS = {"png_300px": "PNG of 300 px", "jpeg_1024px": "JPEG of 1,024 px"}


def show(diagnosis: Diagnosis, out: Session) -> None:
    """Facts, measurement, what is wrong, and the command."""
    out.table("This machine", ["what", "found"], list(_facts(diagnosis)), words=True)
    if diagnosis.measured:
        out.table("Measured", ["what", "images/s"], list(_rates(diagnosis)))
    out.table(
        "Findings",
        ["level", "about", "what, and what to do"],
        [
            [one.level, one.topic, f"{one.text}; {one.remedy}" if one.remedy else one.text]
            for one in diagnosis.remarks
        ],
        words=True,
    )
    advice = diagnosis.advice
    out.say("For this machine:")
    out.say(f"    {advice.command}")
    if advice.images_per_s:
        rates = ", ".join(f"{rate:.1f} ({_KINDS[kind]})" for kind, rate in advice.images_per_s.items())
        out.say(f"Expected images/s, with a model of the recommended sizes: {rates}")
    if not diagnosis.is_usable:
        out.say("A run would fail here: see the problems above")


def _facts(diagnosis: Diagnosis) -> Iterator[list[str]]:
    machine = diagnosis.machine
    yield ["versions", ", ".join(f"{name} {found or 'missing'}" for name, found in machine.versions.items())]
    yield ["FAISS from", ", ".join(machine.faiss_packages or ()) or _UNKNOWN]
    extras = machine.extras or {}
    yield ["extras here", ", ".join(extra for extra, missing in extras.items() if not missing) or "none"]
    for extra, missing in extras.items():
        if missing:
            yield [f"extra {extra}", f"pip install 'cfa-index[{extra}]' brings {', '.join(missing)}"]
    cpu = machine.processor
    yield ["CPU", cpu.model or _UNKNOWN]
    yield ["CPU features", " ".join(cpu.features) or "none" if cpu.features is not None else _UNKNOWN]
    quota = "" if cpu.quota in (None, float("inf")) else f", {cpu.quota:g} by the control group"
    yield ["cores", f"{_known(cpu.logical)}; {_known(cpu.affinity)} for this process{quota}"]
    threads = machine.threads
    pools = {True: "one OpenMP pool", False: "two OpenMP pools", None: "OpenMP pools unknown"}
    yield [
        "threads",
        f"torch {_known(threads.torch)}, FAISS {_known(threads.faiss)}, {pools[threads.one_pool]}",
    ]
    yield ["GPU", _graphics(diagnosis)]
    yield ["C++ compiler", machine.compiler.path or "none"]
    weights = machine.weights or {}
    yield ["weights here", ", ".join(name for name, one in weights.items() if one.file) or "none"]
    elsewhere = [
        name + f" ({one.missing})" * bool(one.missing) for name, one in weights.items() if not one.file
    ]
    yield ["weights not here", ", ".join(elsewhere) or "none"]
    memory = machine.memory
    limit = f", limit of the control group {_size(memory.limit)}" if memory.limit is not None else ""
    yield ["memory", f"{_size(memory.available)} available of {_size(memory.total)}{limit}"]
    for disk in machine.disks:
        speed = disk.write_bytes_per_s
        written = f", written at {speed / 1e6:.0f} MB/s" if speed is not None else ""
        yield [
            disk.role,
            f"{disk.folder}: {_size(disk.free_bytes)} free of {_size(disk.total_bytes)}{written}",
        ]
    yield ["open files", f"{machine.open_files[0]} at most" if machine.open_files else _UNKNOWN]
    yield ["/dev/shm", _size(machine.shm_bytes)]


def _graphics(diagnosis: Diagnosis) -> str:
    cards = diagnosis.machine.graphics
    seen = _UNKNOWN if cards.torch is None else ", ".join(cards.torch) or "none"
    if cards.torch and cards.capability:
        seen += f", compute capability {cards.capability}"
    if cards.torch and cards.free_bytes is not None:
        seen += f", {_size(cards.free_bytes)} free of {_size(cards.memory_bytes)}"
    built = f" (built for CUDA {cards.torch_cuda})" if cards.torch_cuda else ""
    runtime = f" (CUDA {cards.faiss_cuda})" if cards.faiss_cuda else ""
    return f"torch{built}: {seen}; FAISS{runtime}: {_known(cards.faiss)}"


def _rates(diagnosis: Diagnosis) -> Iterator[list[str]]:
    measured = diagnosis.measured
    assert measured is not None
    for kind, rate in measured.decoded_per_s.items():
        yield [f"decode a {_KINDS[kind]}, one core", _rate(rate)]
    where = f"{measured.threads} threads" if measured.device == "cpu" else measured.device
    batch = f"batch {measured.batch_size}, {where}"
    for precision, rate in measured.forward_per_s.items():
        yield [f"{measured.backbone} alone, {precision}, {batch}", _rate(rate)]
    for precision, rate in measured.scored_per_s.items():
        yield [f"pixels to score, {precision}, {batch}", _rate(rate)]


def _rate(rate: float | None) -> str:
    return _UNKNOWN if rate is None else f"{rate:.1f}"


def _known(value: int | None) -> str:
    return _UNKNOWN if value is None else str(value)


def _size(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else f"{size_bytes / (1 << 30):.1f} GiB"
