"""What is installed, and how the libraries see the machine."""

from __future__ import annotations

import platform
import re
import sysconfig
import warnings
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from PIL import features as pillow

from cfa_index.backbones import backbone_entry, backbone_names, checkpoint_path
from cfa_index.bank import faiss_threads, faiss_version, gpu_count, shares_torch_threads
from cfa_index.card_memory import memory_of
from cfa_index.devices import cpp_compiler
from cfa_index.errors import WeightsError
from cfa_index.workflows.doctor_facts import Compiler, Graphics, Threads, Weights
from cfa_index.workflows.doctor_machine import known

_NEEDED = ("torch", "torchvision", "numpy", "pillow", "zarr", "pyarrow")
_DEVELOPERS = frozenset({"test", "check", "bench"})
"""Extras that no operator needs."""
_REQUIREMENT = re.compile(r"([\w.-]+)[^;]*;.*\bextra\s*==\s*['\"]([\w.-]+)['\"]")
_CUDA_RUNTIME = re.compile(r"nvidia-cuda-runtime[\w-]*")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def versions() -> dict[str, str | None]:
    """Of cfa-index, Python and what they need, by name; None for a package that is not installed."""
    return {
        "cfa-index": _version("cfa-index"),
        "python": platform.python_version(),
        **{name: _version(name) for name in _NEEDED},
        "faiss": known(faiss_version),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def faiss_packages() -> tuple[str, ...]:
    """Those of PyPI that are installed."""
    return tuple(name for name in ("faiss-gpu", "faiss-gpu-cuvs", "faiss-cpu") if _version(name))


def extras() -> dict[str, tuple[str, ...]]:
    """Packages of each optional extra that are not installed, by extra."""
    found: dict[str, tuple[str, ...]] = {}
    for line in requires("cfa-index") or ():
        match = _REQUIREMENT.match(line)
        if match and match[2] not in _DEVELOPERS:
            missing = () if _version(match[1]) else (match[1],)
            found[match[2]] = found.get(match[2], ()) + missing
    return found


def fast_jpeg() -> bool:
    """Whether Pillow decodes JPEG with libjpeg-turbo."""
    return bool(pillow.check_feature("libjpeg_turbo"))


def threads() -> Threads:
    """Of torch and FAISS, as they are set now."""
    return Threads(
        torch=known(torch.get_num_threads), faiss=known(faiss_threads), one_pool=known(shares_torch_threads)
    )


def graphics() -> Graphics:
    """CUDA devices as the driver, torch and FAISS see them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a driver that is too old: a fact like others
        cards = known(_cards)
        memory = known(memory_of, torch.device("cuda", 0)) if cards else None
        return Graphics(
            driver=known(_NVIDIA_DRIVER.exists),
            torch=cards,
            torch_cuda=torch.version.cuda or "",
            faiss=known(gpu_count),
            memory_bytes=memory[1] if memory else None,
            free_bytes=memory[0] if memory else None,
            capability=known(_capability) if cards else None,
            faiss_cuda=known(_faiss_cuda),
        )


def _cards() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def _capability() -> str:
    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}.{minor}"


def _faiss_cuda() -> str | None:
    """Of the package of CUDA's runtime that faiss-gpu asks for; FAISS itself does not say."""
    for line in requires("faiss-gpu") or ():
        if match := _CUDA_RUNTIME.match(line):
            return _version(match[0])
    return None


def compiler() -> Compiler:
    """What torch.compile would call on the CPU, and whether Python's headers are there for it to include."""
    return Compiler(path=known(cpp_compiler), has_headers=known(_has_headers))


def _has_headers() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def weights(backbone: str) -> dict[str, Weights]:
    """Of each backbone of the registry, and of `backbone`. Nothing is downloaded.

    Raises:
        SpecError: there is no backbone of that name.
        WeightsError: timm is asked for and not installed.
    """
    return {name: _weights(name) for name in dict.fromkeys((*backbone_names(), backbone))}


def _weights(name: str) -> Weights:
    entry = backbone_entry(name)
    if not entry.weights:
        return Weights(file=None, missing="--weights FILE")
    try:
        file = checkpoint_path(entry)
    except WeightsError as error:
        return Weights(file=None, missing=error.remedy)
    return Weights(file=file if file.is_file() else None)
