from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from cfa_index.devices import resolve_device, resolve_devices
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


def test_several_cards_are_named_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_devices("cpu") == (torch.device("cpu"),)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert resolve_devices("cuda:2,0") == (torch.device("cuda", 2), torch.device("cuda", 0))
    assert resolve_devices("cuda:1") == (torch.device("cuda", 1),)
    with pytest.raises(SpecError, match="each card once, got 'cuda:1,0,1'"):
        resolve_devices("cuda:1,0,1")
    with pytest.raises(DeviceError, match="CUDA device 3, got 3"):
        resolve_devices("cuda:0,3")
    with pytest.raises(SpecError, match=r"one device, got 'cuda:0,1'; .* take several"):
        resolve_device("cuda:0,1")


@pytest.mark.parametrize("name", ["cuda:0,", "cuda:,1", "cuda:0 1", "0,1", "cuda0,1"])
def test_other_lists_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="auto, cpu, cuda, cuda:N"):
        resolve_devices(name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_can_be_kept() -> None:
    code = "from cfa_index import reuse_freed_memory; print(reuse_freed_memory())"  # it is the process's for good
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
