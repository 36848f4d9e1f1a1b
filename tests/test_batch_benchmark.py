"""The arithmetic of benchmarks.batch and benchmarks.night, and one small run of what they time."""

from __future__ import annotations

from pathlib import Path

import made_up

from benchmarks.batch import Rate, backbone_rate, folder_rate, in_turn, ratio, table, verdicts
from benchmarks.night import Sampler, resident_mib
from cfa_index import ModelBundle

RATES = {
    "backbone": [Rate(images_per_s=10), Rate(images_per_s=20), Rate(images_per_s=5)],
    "fp32": [
        Rate(images_per_s=8, wait_read=0.1, wait_write=0.0),
        Rate(images_per_s=12),
        Rate(images_per_s=4),
    ],
    "bf16": [Rate(images_per_s=12), Rate(images_per_s=20), Rate(images_per_s=6)],
    "bf16 compiled": [Rate(images_per_s=16), Rate(images_per_s=24), Rate(images_per_s=10)],
}


def test_a_ratio_is_the_median_over_rounds_of_runs_side_by_side() -> None:
    assert ratio(RATES, "fp32", "backbone") == 0.8
    assert ratio(RATES, "bf16", "fp32") == 1.5


def test_of_two_ways_to_bf16_the_better_one_counts() -> None:
    assert verdicts(RATES) == [
        "fp32 at least 0.65 x backbone: 0.80, met",
        "bf16 at least 1.8 x fp32: 2.00, met",
    ]
    lines = table(RATES).splitlines()
    assert len(lines) == 5
    assert "10% 0%" in lines[2]


def test_jobs_take_turns() -> None:
    order: list[str] = []

    def job(name: str) -> Rate:
        order.append(name)
        return Rate(images_per_s=1)

    in_turn({"a": lambda: job("a"), "b": lambda: job("b")}, 2)
    assert order == ["a", "b", "a", "b"]


def test_a_folder_and_a_backbone_are_timed(tmp_path: Path) -> None:
    place = made_up.built_workplace(tmp_path)
    bundle = ModelBundle.load(place.models / "weave")
    images = place.data / "weave" / "train" / "good"
    rate = folder_rate(bundle, images, tmp_path / "scores", batch=4, workers=0)
    assert rate.images_per_s > 0
    assert rate.wait_read is not None
    assert not (tmp_path / "scores").exists()
    assert backbone_rate(bundle, 4, 2).images_per_s > 0


def test_memory_is_sampled_until_the_end() -> None:
    with Sampler() as sampler:
        sampler.samples.append((0.0, 100.0))
    assert sampler.between(0, 0) == 100
    assert sampler.between(5, 6) == sampler.samples[-1][1]
    assert 1 < resident_mib() < 1e6
