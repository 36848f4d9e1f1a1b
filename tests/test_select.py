from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from made_up import Workplace, cfa
from sklearn.metrics import roc_auc_score

from cfa_index.bundle import ModelBundle, set_current
from cfa_index.errors import SpecError
from cfa_index.specs import BankSpec, DescriptorSpec, ModelSpec
from cfa_index.workflows.opening import open_store
from cfa_index.workflows.probes import (
    MOST_PROBES,
    Probes,
    draw_probes,
    probe_scores,
    split_probes,
)
from cfa_index.workflows.select import (
    Selection,
    _initialisations,
    _methods,
    _sizes,
    paired_gain,
    win_shares,
)


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
    assert "as build found them" in line
    assert "no such file" in line


def test_an_image_that_was_changed_is_one_line(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=16)
    assert place.build("--held-out", "1/2").code == 0
    for number, file in enumerate((place.data / "weave" / "train" / "good").iterdir()):
        made_up.write_image(file, made_up.texture(500 + number))
    line = cfa("train", "-c", "weave", *place.stores, "--select", "synthetic").error_line
    assert "changed since" in line


def test_a_choice_goes_on_where_it_was_killed(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first epoch of a selecting training; the result is that of the unbroken one."""
    from cfa_index.workflows import checkpoint, train

    copy = Workplace(root=tmp_path / "copy")
    shutil.copytree(place.root, copy.root)
    model = copy.models / "weave"
    for generation in (model / "generations").iterdir():
        if generation.name > "0002":
            shutil.rmtree(generation)
    set_current(model, "0001")
    shutil.rmtree(model / "generations" / "0002")
    # The store's folder name covers its source: the images stay where they were.
    command = ("train", "-c", "weave", *copy.stores, "--select", "synthetic", "--epochs", "2")
    real, calls = checkpoint.write_checkpoint, list[int]()

    def once(*arguments: Any) -> None:
        real(*arguments)
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "write_checkpoint", once)
        assert cfa(*command).code == 130
    assert calls == [1]
    assert cfa(*command).code == 0
    made = made_up.tree(model / "generations" / "0002")
    unbroken = made_up.tree(place.models / "weave" / "generations" / "0002")
    for name in ("descriptor.safetensors", "vectors.npy", "selection.csv", "baseline.npy"):
        assert made.get(name) == unbroken.get(name), name


def test_probes_are_good_images_and_a_defect_of_each_kind(place: Workplace) -> None:
    bundle = ModelBundle.load(place.models / "weave" / "generations" / "0001")
    store = open_store(bundle.manifest, place.features)
    rows = store.good_rows[:3]
    probes = draw_probes(store, rows, bundle.backbone, seed=0)
    assert probes.labels.tolist() == [False] * 3 + [True] * 12
    for level, stored in zip(probes.levels, store.read(rows), strict=True):
        torch.testing.assert_close(level[:3], stored, rtol=1e-3, atol=1e-3)  # the same images, read again
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
    selection = Selection(Probes(levels=[], frames=[], labels=labels), epochs=1)
    kept = [selection.consider("bank", str(number), bundle.scorer) for number in range(4)]
    assert kept == [True, False, True, False]
    last = selection.trials[2]
    assert last.synthetic_auroc == pytest.approx(roc_auc_score(labels, noise + 4 * labels))
    assert last.gain_low > 0


@given(st.integers(2, 12), st.integers(0, 50))
def test_shares_of_wins_give_the_auroc_of_any_resample(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = np.arange(5 * count) >= count
    scores = draw.integers(0, 6, 5 * count).astype(np.float32)  # with ties
    wins = win_shares(labels, scores)
    assert wins.mean() == pytest.approx(roc_auc_score(labels, scores))
    times = draw.multinomial(count, np.full(count, 1 / count))
    expected = roc_auc_score(labels, scores, sample_weight=np.tile(times, 5))
    assert times @ wins @ times / count**2 == pytest.approx(expected)


def test_settings_that_differ_by_chance_are_seldom_told_apart() -> None:
    """48 images, effects shared by an image and its defects, 12 settings that are all the same in truth."""
    found = 0
    for run in range(40):
        draw = np.random.default_rng(run)
        base, labels = np.tile(draw.normal(size=48), 5), np.arange(240) >= 48
        shares = [
            win_shares(labels, (base + labels + 0.5 * np.tile(draw.normal(size=48), 5)).astype(np.float32))
            for _ in range(12)
        ]
        found += any(paired_gain(one, shares[0], 1 - 0.05 / 12)[1] > 0 for one in shares[1:])
    assert found <= 6


@pytest.mark.parametrize(
    ("bank", "words"),
    [
        (BankSpec(), ["784 memories"]),
        (BankSpec(method="kmeans"), ["hybrid", "784 memories"]),
        (BankSpec(method="full", size=None), []),
        (BankSpec(size=20), []),  # a fourth of it has fewer than K + J
        (BankSpec(method="mean", size=None), ["hybrid"]),
    ],
)
def test_banks_that_are_tried(bank: BankSpec, words: list[str]) -> None:
    spec = ModelSpec(bank=bank)
    assert [word for choices in (_methods, _sizes) for word, _ in choices(spec)] == words


def test_initialisations_that_are_tried_leave_out_the_model_s_own() -> None:
    words = [word for word, _ in _initialisations(ModelSpec())]
    assert words == ["whitened, shrinkage 0.01", "whitened, shrinkage 1.0", "standardised only"]
    narrow = ModelSpec(descriptor=DescriptorSpec(gamma_d=0.25))
    assert "standardised only" not in [word for word, _ in _initialisations(narrow)]
