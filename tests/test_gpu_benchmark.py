"""benchmarks.gpu: every section on tiny sizes, on whatever device there is, and its arithmetic."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import FULL, SECONDS, TINY, Run, main
from benchmarks.gpu_case import precisions_of
from benchmarks.gpu_clock import Budget, Clock, Timing, describe_device, draw_patches, free_bytes
from benchmarks.gpu_decoding import measure_decoding
from benchmarks.gpu_operations import count_operations
from benchmarks.gpu_roofline import Peaks, measure_roofline, roof_row
from benchmarks.gpu_scoring import measure_batches, measure_throughput
from benchmarks.gpu_sizes import SizePlan, measure_sizes, too_large
from cfa_index.errors import CardMemoryError, WeightsError
from cfa_index.specs import FeatureSpec

CPU = torch.device("cpu")


def test_the_command_measures_every_section_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--device", "cpu", "--threads", "1", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    printed = capsys.readouterr().out
    assert printed.startswith(found.pop("header"))
    assert "torch built for CUDA" in printed
    assert set(found) == set(SECONDS)
    assert all(section["rows"] and section["left_out"] == [] for section in found.values())
    for letter in SECONDS:
        assert f"\n{letter}: " in printed
    kinds = [row["kind"] for row in found["b"]["rows"]]
    assert kinds == ["flat", "flat fp16", "ivf", "ivf-sq8", "ivf-pq", "cagra"] * len(TINY.memories)
    assert all(row["recall"] == 1 for row in found["b"]["rows"] if row["kind"].startswith("flat"))


def test_every_section_goes_through_a_card(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":
        pytest.skip("the command's own test")
    if device.type != "cuda":  # as on a card of 2018
        monkeypatch.setattr("benchmarks.gpu_case.multiplies_bf16", lambda _: False)
    run = Run(device=device, sizes=TINY)
    found = {letter: run.section(letter) for letter in SECONDS}
    assert all(section.rows for section in found.values())
    _, scoring, step = found["f"].rows
    assert (scoring["job"], step["job"]) == ("levels to scores", "training step")
    # What docs/gpu.md says of a step on a card, which is bound by its launches.
    assert scoring["launches"] <= 60
    assert step["launches"] <= 100
    assert (scoring["waits"], step["waits"]) == (0, 0)


def test_a_section_that_fails_says_so_and_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    monkeypatch.setattr("benchmarks.gpu.measure_peaks", refuse)
    section = Run(device=CPU, sizes=TINY).section("e")
    assert section.rows == []
    assert section.text.splitlines()[1:] == [
        "nothing was measured",
        "left out: all of it: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ]


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--only", "a,z"])
    assert "not z" in capsys.readouterr().err


def test_the_budgets_leave_a_margin_below_eight_minutes() -> None:
    assert sum(SECONDS.values()) <= 450


def test_the_full_sizes_are_those_of_the_issue() -> None:
    assert FULL.memories == [1000, 10_000, 100_000, 1_000_000, 10_000_000]
    assert dict(FULL.networks)["wide_resnet50_2"] == ("1", "1/2", "1/4", "1/8")


def test_nothing_is_begun_that_does_not_fit_the_time_that_is_left() -> None:
    budget = Budget(100.0)
    assert budget.allows("short", 1.0)
    assert not budget.allows("long", 90.0)
    assert not Budget(0.0).allows("late")
    assert budget.left_out == ["long: 90 s expected, 100 s left"]


def test_without_time_everything_is_left_out_and_said() -> None:
    clock, budget = Clock(CPU, 1), Budget(0.0)
    plan = SizePlan(sizes=[10], widths=[8], patches=4, images=1, seed=0)
    peaks = Peaks(bytes_per_s=1.0, flops={"fp32": 1.0})
    assert measure_sizes(clock, budget, plan) == []
    assert measure_roofline(clock, budget, peaks, [(1, 2, 3)], seed=0) == []
    assert budget.left_out == [
        "10 x 8: 0 s expected, 0 s left",
        "1 queries in 2 x 3: 0 s expected, 0 s left",
    ]


def test_a_way_that_cannot_be_has_its_reason_in_the_table() -> None:
    plan = SizePlan(sizes=[20], widths=[7], patches=4, images=1, seed=0, indexes=["PQ5"])  # 7 has no 5 parts
    *_, row = measure_sizes(Clock(CPU, 1), Budget(60.0), plan)
    assert (row.kind, row.ms) == ("PQ5", 0)
    assert row.made.startswith("expected")


def test_an_index_that_a_card_does_not_have_is_said_to_be_searched_exactly(device: torch.device) -> None:
    plan = SizePlan(sizes=[40], widths=[8], patches=4, images=1, seed=0, indexes=["HNSW4"])
    *_, row = measure_sizes(Clock(device, 1), Budget(60.0), plan)
    assert row.made.endswith("searched exactly") == (device.type != "cpu")


def test_a_bank_that_memory_does_not_hold_is_not_tried() -> None:
    assert too_large(CPU, 1000, 8) == ""
    assert "GiB needed on cpu" in too_large(CPU, 10**9, 1536)


def test_memory_time_and_flat_itself_are_said_where_they_decide() -> None:
    plan = SizePlan(sizes=[20, 10**10], widths=[4], patches=4, images=1, seed=0, indexes=["flat"])
    budget = Budget(60.0)
    rows = measure_sizes(Clock(CPU, 1), budget, plan)
    assert [(row.kind, row.made) for row in rows][2:] == [("flat", "flat")]
    assert len(budget.left_out) == 1
    assert budget.left_out[0].startswith("10,000,000,000 x 4: ")


def test_a_card_that_runs_out_all_the_same_ends_a_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CardMemoryError(expected="room", got="none", remedy="take less")

    monkeypatch.setattr("benchmarks.gpu_sizes._at_size", refuse)
    plan = SizePlan(sizes=[20, 30], widths=[4], patches=4, images=1, seed=0)
    budget = Budget(60.0)
    assert measure_sizes(Clock(CPU, 1), budget, plan) == []
    assert budget.left_out == [f"{size} x 4: expected room, got none; take less" for size in (20, 30)]


def test_an_index_waits_for_flat_at_the_next_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_sizes._GROWTH", 1e9)
    plan = SizePlan(sizes=[20, 30], widths=[4], patches=4, images=1, seed=0)
    budget = Budget(60.0)
    assert [row.kind for row in measure_sizes(Clock(CPU, 1), budget, plan)] == ["flat"]
    assert [line.partition(":")[0] for line in budget.left_out] == [
        "flat fp16, 20 x 4",
        "ivf, 20 x 4",
        "ivf-sq8, 20 x 4",
        "ivf-pq, 20 x 4",
        "cagra, 20 x 4",
        "30 x 4",
    ]


def test_networks_that_cannot_be_had_and_those_without_time_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    features = FeatureSpec(backbone="resnet18", size_px=32)
    late, budget = Budget(0.0), Budget(60.0)
    assert measure_throughput(Clock(CPU, 1), late, [(features, ["1"])], batch=1, seed=0) == []
    assert measure_batches(Clock(CPU, 1), late, features, batches=1, batch=1, compiled=False, seed=0) == []
    assert [line.partition(":")[0] for line in late.left_out] == [
        "resnet18, fp32",
        "resnet18, bf16",
        "fp32",
        "bf16",
    ]

    def refuse(*_: object, **__: object) -> None:
        raise WeightsError(expected="a package", got="none", remedy="install it")

    monkeypatch.setattr("benchmarks.gpu_case.load_backbone", refuse)
    assert measure_throughput(Clock(CPU, 1), budget, [(features, ["1"])], batch=1, seed=0) == []
    assert budget.left_out[0] == "resnet18, fp32: expected a package, got none; install it"


def test_compiled_networks_come_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network, **_: asked.append(network))
    found = Run(device=CPU, sizes=TINY, compiled=True).section("d")
    assert [row["mode"] for row in found.rows] == ["fp32", "bf16", "fp32 compiled", "bf16 compiled"]
    assert len(asked) == 2


def test_without_time_no_jpeg_is_decoded() -> None:
    late = Budget(0.0)
    features = FeatureSpec(backbone="resnet18", size_px=32)
    assert measure_decoding(Clock(CPU, 1), late, features, [40], images=1) == []
    assert late.left_out == ["40 px: 0 s expected, 0 s left"]


def test_quartiles_are_those_of_the_measurements() -> None:
    timing = Timing.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (timing.low_s, timing.median_s, timing.high_s) == (2.0, 3.0, 4.0)
    assert timing.rate(6) == 2.0
    assert Timing.of([2.0]) == Timing(median_s=2.0, low_s=2.0, high_s=2.0)


def test_the_roof_is_what_takes_longer() -> None:
    peaks = Peaks(bytes_per_s=4e9, flops={"fp32": 1e9, "bf16": 1e12})
    row = roof_row(peaks, queries=10, memories=1000, width=100, ms=8.0)
    # 2 * 10 * 1000 * 100 = 2e6 operations: 2 ms; 4 * 1010 * 100 = 404,000 bytes: 0.101 ms.
    assert row.roof_ms == pytest.approx({"fp32": 2.0, "bf16": 0.101})
    assert row.bound_by == "products"
    assert row.achieved("fp32") == pytest.approx(0.25)
    assert row.tflops == pytest.approx(2.5e-4)
    assert row.gbytes_per_s == pytest.approx(0.0505)


def test_launches_views_and_waits_are_told_apart() -> None:
    x = torch.ones(4)

    def job() -> None:
        y = x.view(2, 2) + 1  # a view and a launch
        torch.empty(3)  # nothing
        float(y.sum())  # a launch and a wait
        x[x > 0]  # a launch, and a wait: how many are there

    (row,) = count_operations({"job": job})
    assert (row.launches, row.waits) == (5, 2)
    assert row.most["add"] == 1
    assert row.views >= 2


def test_compounds_count_as_what_they_are_made_of() -> None:
    x = torch.ones(2, 3)

    def job() -> None:
        with torch.inference_mode():
            torch.matmul(x, x.T).flatten()

    (row,) = count_operations({"job": job})
    assert row.most == {"mm": 1}


def test_made_up_patches_are_the_same_for_a_seed_and_have_few_directions() -> None:
    draw = partial(draw_patches, 300, 128, CPU)
    x = draw(seed=1, block=100)
    assert torch.equal(x, draw(seed=1, block=100))
    assert not torch.equal(x, draw(seed=2, block=100))
    variances = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    assert float(variances[:64].sum() / variances.sum()) > 0.95


def test_a_cpu_imitates_bf16_here() -> None:
    assert precisions_of(CPU, Budget(1.0)) == ["fp32", "bf16"]


class MadeUpEvent:
    """An event of a card whose time goes on only where a test says so."""

    now_ms = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at_ms = 0.0

    def record(self, stream: object) -> None:
        assert stream == "current"
        self.at_ms = MadeUpEvent.now_ms

    def synchronize(self) -> None:
        """It has happened."""

    def elapsed_time(self, end: MadeUpEvent) -> float:
        return end.at_ms - self.at_ms


def test_on_a_card_the_clock_asks_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="No Card", major=7, minor=5, multi_processor_count=1)
    modes: list[int | str] = []
    for name, answer in {
        "Event": MadeUpEvent,
        "current_stream": lambda _: "current",
        "synchronize": lambda _: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _: (1 << 30, 3 << 30),
        "get_device_properties": lambda _: facts,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    card = torch.device("cuda", 0)
    clock, calls = Clock(card, 3), [0, 0]

    def job(number: int, takes_ms: float) -> None:
        calls[number] += 1
        MadeUpEvent.now_ms += takes_ms

    times = clock.in_turn({"none": partial(job, 0, 0.0), "some": partial(job, 1, 20.0)})
    assert calls == [2 + 3 * 200, 2 + 3 * 3]  # two to warm up; then as many as fill 50 ms, at most 200
    assert times["some"].ms == pytest.approx(20.0)

    def waiting() -> None:
        if modes == ["warn"]:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert clock.waits(waiting) == 1
    assert modes == ["warn", 0]
    assert clock.used_bytes() == 2 << 30
    assert free_bytes(card) == 1 << 30
    told = describe_device(card, 0, only="b")
    assert "card: No Card, compute capability 7.5, 1 multiprocessors, 1.00 of 3.00 GiB free" in told


def test_a_cpu_waits_for_nothing_and_takes_nothing_of_a_card() -> None:
    clock = Clock(CPU, 1)
    assert clock.waits(lambda: None) is None
    assert clock.used_bytes() == 0
