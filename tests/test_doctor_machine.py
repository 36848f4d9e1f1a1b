"""doctor on a real machine and on made-up control groups: facts, a short measurement, the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import ONE_THREAD, cfa
from networks import cut_network

from cfa_index import devices
from cfa_index.bank import faiss_threads, shares_torch_threads
from cfa_index.workflows import doctor_libraries, doctor_machine as system
from cfa_index.workflows.doctor_card import recommended_footprint
from cfa_index.workflows.doctor_facts import JPEG, PNG, Memory
from cfa_index.workflows.doctor_measure import made_up_file, measure

NET = "wide_resnet50_2"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  1000 kB\nMemAvailable:  800 kB\n"}


def test_a_machine_without_limits(tmp_path: Path) -> None:
    info = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: sse avx2 amx_bf16\n\nprocessor\t: 1\nmodel name\t: B\n"
    files = {"proc/cpuinfo": info, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "max 100000"}
    found = system.processor(tree(tmp_path, {**files, **MEMINFO}))
    assert (found.model, found.features, found.quota) == ("A CPU", ("avx2", "amx_bf16"), float("inf"))
    assert found.usable == len(os.sched_getaffinity(0))
    assert system.memory(tmp_path) == Memory(total=1000 * 1024, available=800 * 1024, limit=None)


def test_limits_of_control_groups_2_and_of_those_above(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/"
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        top + "a/b/cpu.max": "200000 100000",
        top + "a/cpu.max": "50000 100000",
        top + "a/memory.max": "500000",
        top + "a/memory.current": "400000",
        top + "a/memory.stat": "anon 1\ninactive_file 300000\n",
        top + "a/b/memory.max": "max",
    }
    tree(tmp_path, {**files, **MEMINFO})
    assert system.processor(tmp_path).quota == 0.5
    assert system.processor(tmp_path).usable == 0.5
    assert system.memory(tmp_path) == Memory(total=1000 * 1024, available=400_000, limit=500_000)


def test_limits_of_control_groups_1_whose_name_is_the_host_s(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/"
    files = {
        "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n",
        top + "cpu/cpu.cfs_quota_us": "150000",
        top + "cpu/cpu.cfs_period_us": "100000",
        top + "memory/memory.limit_in_bytes": "9223372036854771712",
        top + "memory/memory.usage_in_bytes": "5",
        top + "memory/memory.stat": "total_inactive_file 5\n",
    }
    tree(tmp_path, {**files, **MEMINFO})
    assert system.memory(tmp_path).limit is None
    # The controllers are mounted by their first name or by a link.
    (tmp_path / "sys/fs/cgroup/cpu,cpuacct").symlink_to("cpu")
    assert system.processor(tmp_path).quota == 1.5


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (2.9, 2), (float("inf"), 4)])
def test_usable_cores_keep_to_the_quota(quota: float, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(devices, "cpu_quota", lambda: quota)
    assert devices.usable_cores() == cores


def test_usable_cores_where_there_are_no_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> float:
        raise FileNotFoundError

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(devices, "cpu_quota", missing)
    assert devices.usable_cores() == 4


def test_nothing_readable_is_unknown(tmp_path: Path) -> None:
    found = system.processor(tmp_path)
    assert (found.model, found.features, found.quota) == (None, None, None)
    assert system.memory(tmp_path) == Memory(total=None, available=None, limit=None)
    tree(tmp_path, {"proc/self/cgroup": "nonsense", "proc/meminfo": "MemTotal: many"})
    assert system.memory(tmp_path) == Memory(total=None, available=None, limit=None)
    assert system.processor(tmp_path).quota is None


def test_a_folder_that_is_not_there_yet_is_looked_for_above(tmp_path: Path) -> None:
    found = system.disk("output", tmp_path / "a" / "b", measure=True)
    assert found.writable is True
    assert found.free_bytes is not None
    assert found.write_bytes_per_s is None or found.write_bytes_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    assert system.disk("models", tmp_path / "models", measure=True).writable is False
    outcome = cfa("doctor", "--quick", "--models-dir", tmp_path / "models", "--json", "-", env=ONE_THREAD)
    assert outcome.code == 1
    assert outcome.document["usable"] is False
    assert "A run would fail here" in outcome.err


def test_asking_for_the_pool_leaves_the_numbers_alone() -> None:
    before = torch.get_num_threads(), faiss_threads()
    assert shares_torch_threads() in (True, False)
    assert (torch.get_num_threads(), faiss_threads()) == before


def test_a_library_that_raises_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("driver")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr(doctor_libraries, "gpu_count", broken)
    found = doctor_libraries.graphics()
    assert (found.torch, found.faiss) == (None, None)


def test_a_card_tells_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("is_available", True),
        ("device_count", 1),
        ("get_device_name", "NVIDIA L4"),
        ("get_device_capability", (8, 9)),
        ("mem_get_info", (20 << 30, 24 << 30)),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    found = doctor_libraries.graphics()
    assert (found.torch, found.capability) == (("NVIDIA L4",), "8.9")
    assert (found.free_bytes, found.memory_bytes) == (20 << 30, 24 << 30)
    if "faiss-gpu" in doctor_libraries.faiss_packages():
        assert (found.faiss_cuda or "")[:3] in ("12.", "13.")


def test_the_recommended_model_is_estimated_for_a_card() -> None:
    one, two = (recommended_footprint("resnet18", images) for images in (1, 2))
    names = [part.name for part in one.parts]
    assert names[:4] == ["weights", "memories", "norms", "temporary memory"]
    assert one.parts[1].size_bytes == 3136 * (128 + 256) * 4
    assert one.total < two.total < 2 * one.total


def test_extras_of_developers_are_left_out() -> None:
    assert "demo" in doctor_libraries.extras()
    assert not {"test", "check", "bench"}.intersection(doctor_libraries.extras())


@pytest.mark.parametrize(("kind", "head"), [(PNG, b"\x89PNG"), (JPEG, b"\xff\xd8\xff")])
def test_the_files_to_decode_are_what_they_are_called(kind: str, head: bytes) -> None:
    content = made_up_file(kind, 32)
    assert content.startswith(head)
    assert content == made_up_file(kind, 32)


def test_a_backbone_that_cannot_be_run_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("cfa_index.workflows.doctor_measure.load_backbone", broken)
    events: list[Any] = []
    found = measure(
        backbone="resnet18",
        batch_size=1,
        device=torch.device("cpu"),
        bf16=True,
        threads=1,
        seconds=0.1,
        listener=events.append,
    )
    assert found.forward_per_s == found.scored_per_s == {"fp32": None, "bf16": None}
    assert all(rate and rate > 0 for rate in found.decoded_per_s.values())
    assert sum("allocate" in getattr(event, "message", "") for event in events) == 4


def test_the_command_without_a_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cut_network(monkeypatch, tmp_path)
    here = ("--models-dir", tmp_path / "m", "--features-dir", tmp_path / "f", "-o", tmp_path / "o")
    outcome = cfa("doctor", "--quick", *here, "--json", "-", env=ONE_THREAD)
    document = outcome.document
    assert outcome.code == (0 if document["usable"] else 1), outcome
    assert document["measured"] is None
    assert document["advice"]["images_per_s"] == {}
    assert document["machine"]["weights"][NET]["file"] is None
    assert [disk["role"] for disk in document["machine"]["disks"]] == ["models", "features", "output"]
    assert {"torch", "faiss", "python", "zarr"} <= set(document["machine"]["versions"])
    assert "For this machine:" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_with_a_short_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(system, "_WRITTEN_BYTES", 1 << 20)
    outcome = cfa("doctor", "--backbone", "resnet18", "--seconds", "0.2", "--json", "-", env=ONE_THREAD)
    document = outcome.document
    assert document["measured"]["backbone"] == "resnet18"
    assert document["measured"]["forward_per_s"]["fp32"] > 0
    assert document["measured"]["scored_per_s"]["fp32"] > 0
    assert set(document["advice"]["images_per_s"]) == {PNG, JPEG}
    assert document["advice"]["command"].startswith(
        "cfa-index score FOLDER --category CATEGORY -o OUT --workers "
    )
    assert "Expected images/s" in outcome.err
    assert torch.get_num_threads() >= 1


def test_a_library_that_is_not_there_is_one_line() -> None:
    code = "import sys; sys.modules['faiss'] = None; from cfa_index_cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--quick"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("cfa-index: expected the libraries that cfa-index needs, got ")


def test_an_unknown_backbone_is_one_line() -> None:
    assert "a backbone among" in cfa("doctor", "--quick", "--backbone", "alexnet").error_line
