from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cfa_index.errors import SpecError
from cfa_index.presets import preset
from cfa_index.specs import (
    BankSpec,
    DescriptorSpec,
    FeatureSpec,
    IndexSpec,
    ModelSpec,
    ScoreSpec,
    TrainSpec,
)


@pytest.mark.parametrize("name", ["recommended", "paper", "published-code"])
def test_presets_survive_json(name: str) -> None:
    spec = preset(name)
    assert spec.preset == name
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_the_paper_s_settings() -> None:
    spec = preset("paper")
    assert (spec.train.attract, spec.train.repel, spec.train.margin, spec.train.radius) == (3, 3, 0.1, 1e-5)
    assert (spec.train.epochs, spec.train.batch_size, spec.train.learning_rate) == (30, 4, 1e-3)
    assert (spec.train.weight_decay, spec.train.loss_scale, spec.train.drop_last) == (5e-4, 1.0, False)
    assert (spec.descriptor.init, spec.descriptor.standardise) == ("he", False)
    assert (spec.bank.method, spec.bank.memories(spec.features.patches_per_image)) == ("ema", 3136)
    assert (spec.features.geometry, spec.features.strides) == ("crop", (4, 8, 16))


def test_the_published_code_s_settings() -> None:
    spec = preset("published-code")
    assert (spec.bank.method, spec.descriptor.init) == ("mean", "torch")
    assert (spec.train.loss_scale, spec.train.drop_last) == (1000.0, True)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FeatureSpec(strides=(8, 4)), "ascending, got"),
        (lambda: FeatureSpec(strides=()), "some of 4, 8, 16"),
        (lambda: FeatureSpec(size_px=225), "multiple of 16"),
        (lambda: FeatureSpec(geometry="round"), "one of"),  # type: ignore[arg-type]
        (lambda: DescriptorSpec(gamma_d=4), "write 1/4 or 0.25, not 4"),
        (lambda: DescriptorSpec(init="identity", gamma_d=0.5), "use init 'whiten'"),
        (lambda: BankSpec(size=0), "1 or more"),
        (lambda: BankSpec(gamma_c=4), "write 1/4"),
        (lambda: BankSpec(beta=0), r"in \(0, 1\]"),
        (lambda: IndexSpec(factory=""), "a FAISS factory string"),
        (lambda: IndexSpec(factory="hnsw", budget_latency_ms=20), "use --index auto"),
        (lambda: IndexSpec(min_recall=99), "write 0.99, not 99"),
        (lambda: IndexSpec(factory="auto", budget_memory_bytes=0), "more than 0 bytes"),
        (lambda: TrainSpec(radius=0), "more than 0, or 'median'"),
        (lambda: TrainSpec(radius="mean"), "more than 0, or 'median'"),  # type: ignore[arg-type]
        (lambda: ScoreSpec(false_alarm_rate=0), "between 0 and 1"),
        (lambda: ModelSpec(bank=BankSpec(method="ema", size=5000)), r"at most h\*w = 784, got 5000"),
        (lambda: ModelSpec(bank=BankSpec(size=2)), "at most the bank's 2 memories, got 3"),
        (lambda: ModelSpec(seed=-1), "from 0 to 1000000000, got -1"),
        (lambda: TrainSpec(learning_rate=float("inf")), "finite and more than 0"),
        (lambda: TrainSpec(margin=float("nan")), "finite, 0 or more"),
        (
            lambda: ModelSpec(
                features=FeatureSpec(geometry="letterbox"), bank=BankSpec(method="mean", size=9)
            ),
            "need whole grids",
        ),
        (lambda: preset("best"), "recommended, paper, published-code"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, match: str) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSpec().epochs = 5  # type: ignore[misc]


def test_unknown_and_missing_keys_are_refused() -> None:
    values = ScoreSpec().to_dict()
    with pytest.raises(SpecError, match="keys"):
        ScoreSpec.from_dict({**values, "colour": "red"})
    del values["sigma_px"]
    with pytest.raises(SpecError, match="keys"):
        ScoreSpec.from_dict(values)


def test_ratios_become_sizes() -> None:
    assert BankSpec(size=None, gamma_c=0.25).memories(3136) == 784
    assert DescriptorSpec(gamma_d=0.25).width(1792) == 448
    assert FeatureSpec(strides=(4, 8, 16)).grid == (56, 56)
