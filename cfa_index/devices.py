"""Which device to compute on, what it can do, and how its memory is kept."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import torch

from cfa_index.bank import gpu_count
from cfa_index.errors import DeviceError, SpecError
from cfa_index.limits import cpu_quota
from cfa_index.specs import Precision

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
_SEVERAL = r"cuda:([0-9]+(?:,[0-9]+)+)"
_CPU_FACTS = Path("/proc/cpuinfo")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names of the instructions that multiply bfloat16: two of x86's, and Arm's."""


def usable_cores() -> int:
    """Cores that this process may run on, its container's share counted; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        cores = max(1, int(min(cores, cpu_quota())))
    return cores


def reuse_freed_memory() -> bool:
    """Keep large buffers that were freed for the next step instead of giving them back to the system.

    glibc maps buffers above 32 MiB anew each time and trims its heap; paging them in again took a tenth
    to a fifth of a training step (benchmarks/stages.py, `--give-back`). It holds for the whole process,
    so the commands that run long loops call it and the library never does.

    Returns:
        Whether the C library is glibc and took the settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def resolve_device(name: str) -> torch.device:
    """The device behind `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a CUDA device that both torch and FAISS see.

    Raises:
        SpecError: another word, or several cards.
        DeviceError: CUDA was asked for and there is none, or no card of that number.
    """
    if name == "auto":  # a card that FAISS cannot use would fail later: both must see it
        both = torch.cuda.is_available() and gpu_count() > 0
        return torch.device("cuda", 0) if both else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    if re.fullmatch(_SEVERAL, name):
        raise SpecError(
            expected="one device",
            got=repr(name),
            remedy="name one card; train, evaluate, query and score take several",
        )
    if not (match := re.fullmatch(r"cuda(?::([0-9]+))?", name)):
        raise SpecError(
            expected="a device among auto, cpu, cuda, cuda:N", got=repr(name), remedy="choose one"
        )
    number, cards = int(match[1] or 0), torch.cuda.device_count()
    if number >= cards:
        raise DeviceError(
            expected=f"a CUDA device {number}", got=f"{cards} CUDA devices", remedy="use --device cpu or auto"
        )
    return torch.device("cuda", number)


def resolve_devices(name: str) -> tuple[torch.device, ...]:
    """The devices behind a name: one, see `resolve_device`, or the cards of `cuda:0,1` in this order.

    Raises:
        SpecError: another word, or a card twice.
        DeviceError: one of them is not there.
    """
    if not (match := re.fullmatch(_SEVERAL, name)):
        return (resolve_device(name),)
    numbers = [int(number) for number in match[1].split(",")]
    if len(set(numbers)) < len(numbers):
        raise SpecError(expected="each card once", got=repr(name), remedy="name other cards")
    return tuple(resolve_device(f"cuda:{number}") for number in numbers)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16; a CPU that does not tell has none."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        facts = _CPU_FACTS.read_text()
    except OSError:
        return False
    return not _BF16_FLAGS.isdisjoint(facts.split())


def cpp_compiler() -> str | None:
    """The C++ compiler that TorchInductor would call, $CXX or g++; None where it is not there."""
    return shutil.which(os.environ.get("CXX", "g++"))


def check_inference(device: torch.device, precision: Precision, *, compiled: bool) -> None:
    """Refuse a precision or compilation that the device cannot do, or does slower than without.

    Raises:
        SpecError: another word for a precision.
        DeviceError: bf16 on a device that would have to imitate it, or compilation without what it needs.
    """
    if precision not in get_args(Precision):
        raise SpecError(
            expected=f"precision to be one of {', '.join(get_args(Precision))}",
            got=repr(precision),
            remedy="give another value for precision",
        )
    if precision == "bf16" and not multiplies_bf16(device):
        raise DeviceError(
            expected=f"{device} to multiply bfloat16 ({', '.join(sorted(_BF16_FLAGS))}, or CUDA 8.0 or newer)",
            got="a device that would imitate it, slower than float32",
            remedy="use --precision fp32",
        )
    if compiled and device.type == "cpu" and cpp_compiler() is None:
        raise DeviceError(
            expected="a C++ compiler, $CXX or g++, for --compile",
            got="none on the PATH",
            remedy="install one, such as the package g++, or leave --compile out",
        )
    if compiled and device.type == "cuda":
        _check_triton(device)


def _check_triton(device: torch.device) -> None:
    """What TorchInductor needs on a card: Triton, a C compiler that Triton calls, and compute capability 7.0."""
    missing = ""
    if find_spec("triton") is None:
        missing = "Triton is not installed"
    elif not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = "no C compiler: neither $CC nor gcc nor clang"
    elif torch.cuda.get_device_capability(device) < (7, 0):
        missing = "a card below compute capability 7.0"
    if missing:
        raise DeviceError(
            expected=f"{device} to compile for, with Triton and a C compiler",
            got=missing,
            remedy="install what is missing, or leave --compile out",
        )
