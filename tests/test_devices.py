from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from cfa_index.devices import resolve_device
from cfa_index.errors import DeviceError, SpecError


def test_names_of_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "mps"])
def test_other_words_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="auto, cpu, cuda, cuda:N"):
        resolve_device(name)


def test_a_card_that_is_not_there_is_named() -> None:
    number = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=f"CUDA device {number}, got {number} CUDA devices"):
        resolve_device(f"cuda:{number}")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_can_be_kept() -> None:
    code = "from cfa_index import reuse_freed_memory; print(reuse_freed_memory())"  # it is the process's for good
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
