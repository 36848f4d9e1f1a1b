from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from made_up import Workplace, cfa

from cfa_index.bundle import ModelBundle
from cfa_index.errors import SpecError
from cfa_index.scorer import Scorer
from cfa_index.workflows.probes import (
    MOST_PROBES,
    Probes,
    draw_probes,
    probe_auroc,
    probe_scores,
    split_probes,
)
from cfa_index.workflows.select import Selection
from cfa_index.workflows.train import open_store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Built with enough held-out images to choose by, and trained with a choice."""
    place = made_up.workplace(tmp_path_factory.mktemp("place"), train=24)
    assert place.build("--held-out", "1/2", "--init", "identity").code == 0
    outcome = cfa("train", "-c", "weave", *place.stores, "--select", "synthetic", "--epochs", "2")
    assert outcome.code == 0, outcome
    assert "chosen by synthetic defects" in outcome.err
    return place


def test_every_trial_is_on_record(place: Workplace) -> None:
    bundle = ModelBundle.load(place.models / "weave")
    rows = list(csv.DictReader((bundle.path / "selection.csv").read_text().splitlines()))
    assert [row["axis"] for row in rows[:1]] == ["initialisation"]
    assert rows[0]["choice"] == "as built"
    assert rows[0]["kept"] == "True"
    assert {row["axis"] for row in rows} == {"initialisation", "bank", "epoch"}
    assert [row["choice"] for row in rows if row["axis"] == "epoch"] == ["1", "2"]
    for row in rows[1:]:
        assert (row["kept"] == "True") == (float(row["gain_low"]) > 0)


def test_half_of_the_held_out_images_choose_and_the_other_half_set_the_threshold(place: Workplace) -> None:
    built = ModelBundle.load(place.models / "weave" / "generations" / "0001").manifest
    chosen = ModelBundle.load(place.models / "weave").manifest
    assert len(built.held_out.uris) == 12
    assert len(chosen.held_out.uris) == 6
    assert set(chosen.held_out.uris) < set(built.held_out.uris)
    assert chosen.spec.train.select == "synthetic"


def test_what_was_chosen_is_a_whole_model(place: Workplace, tmp_path: Path) -> None:
    bundle = ModelBundle.load(place.models / "weave")
    assert len(bundle.sources) == len(bundle.bank) == len(bundle.exemplars)
    image = place.data / "weave" / "test" / "hole" / "000.png"
    assert cfa("query", image, "-c", "weave", *place.model, "-o", tmp_path).code == 0
    again = cfa("train", "-c", "weave", *place.stores, "--select", "none", "--epochs", "1")
    assert again.code == 0, again
    # What has chosen a start never comes back into the threshold.
    assert ModelBundle.load(place.models / "weave").manifest.held_out.uris == bundle.manifest.held_out.uris


def test_splits_are_seeded_apart_and_whole() -> None:
    rows = list(range(5, 405))
    picked, left = split_probes(rows, seed=3)
    assert len(picked) == MOST_PROBES
    assert sorted(picked + left) == rows
    assert (picked, left) == split_probes(rows, seed=3)
    assert picked != split_probes(rows, seed=4)[0]
    with pytest.raises(SpecError, match="at least 8 held-out good images to choose by, got 7"):
        split_probes(rows[:7], seed=0)


def test_too_few_held_out_images_are_one_line(tmp_path: Path) -> None:
    place = made_up.built_workplace(tmp_path, train=10)
    line = cfa("train", "-c", "weave", *place.stores, "--select", "synthetic").error_line
    assert "give --select none" in line


def test_an_image_that_is_gone_is_one_line(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=16)
    assert place.build("--held-out", "1/2").code == 0
    for file in (place.data / "weave" / "train" / "good").iterdir():
        file.unlink()
    line = cfa("train", "-c", "weave", *place.stores, "--select", "synthetic").error_line
    assert "where build found them" in line


def test_probes_are_good_images_and_a_defect_of_each_kind(place: Workplace) -> None:
    bundle = ModelBundle.load(place.models / "weave" / "generations" / "0001")
    store = open_store(bundle, place.features)
    rows = store.good_rows[:3]
    probes = draw_probes(store, rows, bundle.backbone, seed=0)
    assert probes.labels.tolist() == [False] * 3 + [True] * 12
    for level, stored in zip(probes.levels, store.read(rows), strict=True):
        assert torch.equal(level[:3], stored)
        assert not any(torch.equal(level[number], level[3 + number]) for number in range(12))
    assert len(probes.frames) == 15
    assert probe_scores(bundle.scorer, probes).shape == (15,)


def test_a_better_one_is_kept_and_a_doubtful_one_is_not(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(60) >= 12
    noise = np.random.default_rng(0).normal(size=60).astype(np.float32)
    answers = iter([noise + labels, noise + 1.01 * labels, noise + 4 * labels, noise + 3 * labels])
    monkeypatch.setattr("cfa_index.workflows.select.probe_scores", lambda *_: next(answers))
    bundle = ModelBundle.load(place.models / "weave")
    selection = Selection(Probes(levels=[], frames=[], labels=labels))
    scorer: Scorer = bundle.scorer
    kept = [selection.consider("bank", str(number), scorer) for number in range(4)]
    assert kept == [True, False, True, False]
    last = selection.trials[2]
    assert last.synthetic_auroc == probe_auroc(selection.probes, noise + 4 * labels.astype(np.float32))
    assert last.gain_low > 0
    assert replace(last, kept=True) == last
