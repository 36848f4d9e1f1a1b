"""doctor: what made-up machines are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cfa_index.footprint import SMALLER_BATCH, Footprint
from cfa_index.workflows.doctor_advice import Advice, advise
from cfa_index.workflows.doctor_facts import (
    JPEG,
    PNG,
    Compiler,
    Disk,
    Graphics,
    Machine,
    Measured,
    Memory,
    Processor,
    Threads,
    Weights,
)
from cfa_index.workflows.doctor_remarks import Remark, remarks

GIB = 1 << 30
NET = "wide_resnet50_2"
NO_CARD = Graphics(driver=False, torch=(), torch_cuda="13.0", faiss=0, memory_bytes=None)
NEEDED = Footprint.of(SMALLER_BATCH, network=2 * GIB) + Footprint.of("do less", memories=GIB)
CARD = Graphics(
    driver=True,
    torch=("NVIDIA L4",),
    torch_cuda="13.0",
    faiss=1,
    memory_bytes=24 * GIB,
    free_bytes=20 * GIB,
    capability="8.9",
    faiss_cuda="12.9.79",
    needed=NEEDED,
)
DISK = Disk(role="output", folder=Path("out"), writable=True, free_bytes=90 * GIB, total_bytes=100 * GIB)
GOOD = Machine(
    versions={"torch": "2.9", "faiss": "1.12"},
    faiss_packages=("faiss-gpu",),
    extras={"timm": ("timm",)},
    fast_jpeg=True,
    processor=Processor(
        model="CPU", features=("avx2", "avx512_bf16"), logical=8, affinity=8, quota=float("inf")
    ),
    threads=Threads(torch=8, faiss=8, one_pool=True),
    graphics=NO_CARD,
    bf16=True,
    compiler=Compiler(path="/usr/bin/g++", has_headers=True),
    weights={NET: Weights(file=Path("w.pth"))},
    memory=Memory(total=64 * GIB, available=60 * GIB, limit=None),
    disks=(DISK,),
    open_files=(4096, 4096),
    shm_bytes=8 * GIB,
)
MEASURED = Measured(
    backbone=NET,
    size_px=224,
    batch_size=8,
    device="cpu",
    threads=8,
    decoded_per_s={PNG: 200.0, JPEG: 50.0},
    forward_per_s={"fp32": 60.0, "bf16": 120.0},
    scored_per_s={"fp32": 40.0, "bf16": 80.0},
    cpu_share=0.98,
)
UNKNOWN = Machine(
    versions={"torch": "2.9"},
    faiss_packages=None,
    extras=None,
    fast_jpeg=None,
    processor=Processor(model=None, features=None, logical=None, affinity=None, quota=None),
    threads=Threads(torch=None, faiss=None, one_pool=None),
    graphics=Graphics(driver=None, torch=None, torch_cuda=None, faiss=None, memory_bytes=None),
    bf16=None,
    compiler=Compiler(path=None, has_headers=None),
    weights=None,
    memory=Memory(total=None, available=None, limit=None),
    disks=(replace(DISK, writable=None, free_bytes=None, total_bytes=None),),
    open_files=None,
    shm_bytes=None,
)


def faults(machine: Machine, measured: Measured | None = None) -> list[Remark]:
    """Remarks that are not `ok`."""
    return [one for one in remarks(machine, measured, NET) if one.level != "ok"]


def only(machine: Machine, measured: Measured | None = None) -> Remark:
    """The one thing that is wrong; it comes first and says what to do."""
    (fault,) = faults(machine, measured)
    assert remarks(machine, measured, NET)[0] == fault
    assert fault.remedy
    assert "\n" not in fault.text + fault.remedy
    return fault


def test_a_good_machine_has_no_fault() -> None:
    assert faults(GOOD, MEASURED) == []
    topics = {one.topic for one in remarks(GOOD, MEASURED, NET)}
    assert topics >= {"libraries", "CPU", "OpenMP", "GPU", "compiler", "weights", "memory", "output", "bf16"}


def cpu(**changes: Any) -> Machine:
    return replace(GOOD, processor=replace(GOOD.processor, **changes))


def cards(**changes: Any) -> Machine:
    return replace(GOOD, graphics=replace(CARD, **changes))


def disk(**changes: Any) -> Machine:
    return replace(GOOD, disks=(replace(DISK, **changes),))


@pytest.mark.parametrize(
    ("machine", "level", "topic", "words"),
    [
        (cards(faiss=0), "problem", "GPU", "torch sees NVIDIA L4, FAISS sees no card"),
        (cards(torch=(), torch_cuda=""), "problem", "GPU", "FAISS sees 1 card(s), torch none"),
        (cards(torch=(), faiss=0), "problem", "GPU", "neither torch nor FAISS"),
        (
            cards(free_bytes=2 * GIB),
            "note",
            "card memory",
            "takes 3.0 GiB (network 2.0 GiB, memories 1.0 GiB), 2.0",
        ),
        (replace(GOOD, faiss_packages=("faiss-gpu", "faiss-cpu")), "problem", "FAISS", "both installed"),
        (replace(GOOD, fast_jpeg=False), "note", "JPEG", "libjpeg-turbo"),
        (cpu(features=("avx512f",)), "note", "CPU", "neither AVX2"),
        (replace(GOOD, threads=replace(GOOD.threads, torch=64)), "note", "threads", "64 threads on 8"),
        (
            replace(GOOD, threads=replace(GOOD.threads, one_pool=False)),
            "note",
            "OpenMP",
            "a pool of threads each",
        ),
        (
            replace(GOOD, compiler=Compiler(path=None, has_headers=True)),
            "note",
            "compiler",
            "no C++ compiler",
        ),
        (replace(GOOD, compiler=Compiler(path="g++", has_headers=False)), "note", "compiler", "no Python.h"),
        (replace(GOOD, weights={NET: Weights(file=None)}), "note", "weights", "are not here"),
        (replace(GOOD, memory=replace(GOOD.memory, available=2 * GIB)), "note", "memory", "2.0 GiB"),
        (disk(free_bytes=5 * GIB), "note", "output", "5.0 GiB free"),
        (disk(write_bytes_per_s=3e6), "note", "output", "only 3 MB/s"),
        (replace(GOOD, open_files=(256, 4096)), "note", "open files", "at most 256"),
        (replace(GOOD, shm_bytes=64 << 20), "note", "/dev/shm", "64 MiB"),
    ],
)
def test_what_costs_time_or_works_in_part_stops_no_run(
    machine: Machine, level: str, topic: str, words: str
) -> None:
    fault = only(machine)
    assert (fault.level, fault.topic, fault.stops) == (level, topic, False)
    assert words in fault.text


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (replace(GOOD, versions={"torch": "2.9", "faiss": None}), "not found: faiss"),
        (replace(GOOD, memory=replace(GOOD.memory, available=GIB // 2)), "too little"),
        (disk(writable=False), "cannot be written"),
        (disk(free_bytes=0), "0.0 GiB free"),
    ],
)
def test_what_stops_every_run_is_said_to(machine: Machine, words: str) -> None:
    fault = only(machine)
    assert (fault.level, fault.stops) == ("problem", True)
    assert words in fault.text


def test_the_remedy_for_a_card_is_the_missing_half_s() -> None:
    assert "faiss-cpu" in only(replace(cards(faiss=0), faiss_packages=("faiss-cpu",))).remedy
    assert "driver" in only(cards(faiss=0)).remedy
    assert "torch with CUDA" in only(cards(torch=(), torch_cuda="")).remedy
    assert "CUDA 13.0" in only(cards(torch=())).remedy


def test_a_card_that_is_fit_is_described() -> None:
    told = {one.topic: one.text for one in remarks(cards(), None, NET)}
    assert told["GPU"] == (
        "torch and FAISS both see NVIDIA L4, compute capability 8.9, 20 GiB of 24 GiB free"
    )
    assert told["card memory"].endswith("takes 3.0 GiB (network 2.0 GiB, memories 1.0 GiB) at least: it fits")
    bare = {one.topic: one.text for one in remarks(cards(free_bytes=None, capability=None), None, NET)}
    assert bare["GPU"] == "torch and FAISS both see NVIDIA L4"
    assert "card memory" not in bare
    assert "--batch-size" in only(cards(free_bytes=GIB)).remedy
    json.dumps(cards().to_dict(), allow_nan=False)


def test_without_a_card_one_line_says_so() -> None:
    told = [one for one in remarks(GOOD, None, NET) if "card" in one.topic or one.topic == "GPU"]
    assert [(one.level, one.text) for one in told] == [("ok", "none: everything runs on the CPU")]


def test_half_a_core_is_a_note_and_one_thread() -> None:
    machine = cpu(quota=0.5)
    assert {one.topic for one in faults(machine)} == {"cores", "threads"}
    advice = advise(machine, replace(MEASURED, threads=1))
    assert (advice.workers, advice.threads) == (1, 1)
    assert "--threads 1" in advice.command
    assert all(one.level == "note" for one in faults(machine))


def test_an_unknown_machine_is_no_fault_but_for_the_compiler() -> None:
    assert {one.topic for one in faults(UNKNOWN)} == {"compiler"}  # not found is not there
    assert advise(UNKNOWN, None).command == (
        "cfa-index score FOLDER --category CATEGORY -o OUT --workers 1 --batch-size 8"
    )
    json.dumps(UNKNOWN.to_dict(), allow_nan=False)


def test_a_measurement_that_failed_or_was_disturbed_is_a_note() -> None:
    failed = replace(MEASURED, scored_per_s={"fp32": None}, decoded_per_s={PNG: None, JPEG: None})
    assert "could not be run" in only(GOOD, failed).text
    assert advise(GOOD, failed).images_per_s == {}
    assert "41% of a core" in only(GOOD, replace(MEASURED, cpu_share=0.41)).text
    slow = remarks(GOOD, replace(MEASURED, scored_per_s={"fp32": 40.0, "bf16": 30.0}), NET)
    assert any("0.8 x as fast as fp32 here; not worth it" in one.text for one in slow)


def by_hand(scored: float, decoded: float, cores: float, threads: int) -> float:
    """Images a second: cores are the limit, or scoring is."""
    core_seconds = threads / scored + 1 / decoded
    return min(scored, cores / core_seconds)


def test_the_expected_speed_shares_the_cores() -> None:
    advice = advise(GOOD, MEASURED)
    assert advice.images_per_s == pytest.approx({PNG: by_hand(80, 200, 8, 8), JPEG: by_hand(80, 50, 8, 8)})
    assert (advice.precision, advice.workers, advice.batch_size) == ("bf16", 2, 8)
    assert advice.command == (
        "cfa-index score FOLDER --category CATEGORY -o OUT --workers 2 --batch-size 8 --precision bf16"
    )


def test_precision_is_advised_where_it_pays() -> None:
    for scored in ({"fp32": 40.0}, {"fp32": 40.0, "bf16": 44.0}):
        advice = advise(GOOD, replace(MEASURED, scored_per_s=scored))
        assert advice.precision == "fp32"
        assert "--precision" not in advice.command


def test_beside_a_card_all_cores_but_one_decode() -> None:
    machine = cards()
    assert advise(machine, None).workers == 7
    measured = replace(MEASURED, device="cuda:0", batch_size=32, scored_per_s={"fp32": 2000.0})
    advice = advise(machine, measured)
    assert advice.images_per_s == pytest.approx({PNG: 8 * 200.0, JPEG: 8 * 50.0})
    assert (advice.workers, advice.batch_size) == (8, 32)


def test_a_short_memory_takes_small_batches() -> None:
    machine = replace(GOOD, memory=replace(GOOD.memory, available=2 * GIB))
    assert "--batch-size 2" in advise(machine, None).command


def test_the_output_of_the_command_is_quoted() -> None:
    assert "-o '/a b'" in advise(GOOD, None, Path("/a b")).command


def test_advice_is_plain_in_json() -> None:
    assert json.loads(json.dumps(advise(GOOD, MEASURED).to_dict()))["workers"] == 2
    assert isinstance(advise(GOOD, MEASURED), Advice)
