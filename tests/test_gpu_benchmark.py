"""benchmarks.gpu: every section on tiny sizes, on whatever device there is, and its arithmetic."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import FULL, SECONDS, TINY, main, run
from benchmarks.gpu_clock import Budget, Clock, Timing, draw_patches
from benchmarks.gpu_model import precisions_of
from benchmarks.gpu_operations import count_operations
from benchmarks.gpu_roofline import Peaks, measure_roofline, roof_row
from benchmarks.gpu_sizes import SizePlan, measure_sizes, too_large

CPU = torch.device("cpu")


def test_the_command_measures_every_section_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--device", "cpu", "--threads", "1", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == set(SECONDS)
    assert all(section["rows"] and section["left_out"] == [] for section in found.values())
    printed = capsys.readouterr().out
    assert "torch built for CUDA" in printed
    for letter in SECONDS:
        assert f"\n{letter}: " in printed
    kinds = [row["kind"] for row in found["b"]["rows"]]
    assert kinds == ["flat", "flat fp16", "ivf", "ivf-sq8", "ivf-pq"] * len(TINY.memories)
    assert all(row["recall"] == 1 for row in found["b"]["rows"] if row["kind"].startswith("flat"))


def test_every_section_goes_through_a_card(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":
        pytest.skip("the command's own test")
    if device.type != "cuda":  # as on a card of 2018
        monkeypatch.setattr("benchmarks.gpu_model.multiplies_bf16", lambda _: False)
        optimizer = importlib.import_module(
            "torch.optim.optimizer"
        )  # the CPU's kernel answers for the fake card
        devices = optimizer._get_fused_kernels_supported_devices()
        monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*devices, "meta"])
    found = run(device, TINY, list(SECONDS), seed=0, say=lambda _: None)
    assert all(section["rows"] for section in found.values())
    operations = {row["job"]: row for row in found["f"]["rows"]}
    assert [row["waits"] for row in operations.values()] == [0, 0, 0]


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
    found = run(CPU, TINY, ["f"], seed=0, say=lambda _: None)
    assert found["f"]["left_out"] == []
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


def test_a_bank_that_memory_does_not_hold_is_not_tried() -> None:
    assert too_large(CPU, 1000, 8) == ""
    assert "GiB needed on cpu" in too_large(CPU, 10**9, 1536)


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


def test_a_cpu_waits_for_nothing_and_takes_nothing_of_a_card() -> None:
    clock = Clock(CPU, 1)
    assert clock.waits(lambda: None) is None
    assert clock.used_bytes() == 0
