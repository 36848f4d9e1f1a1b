"""Indexes through the commands: built, tuned, kept, read, damaged, made again."""

from __future__ import annotations

import json
from pathlib import Path

import made_up
import numpy as np
import pytest
from made_up import Workplace, cfa

from cfa_index import ModelBundle
from cfa_index.bank import MemoryBank, build_faiss
from cfa_index.specs import INDEX_NAMES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """`weave` under ivf-pq, with enough memories for it."""
    place = made_up.workplace(tmp_path_factory.mktemp("place"))
    outcome = place.build("--bank-size", "600", "--index", "ivf-pq", "--min-recall", "0.9", "--json", "-")
    assert outcome.code == 0, outcome
    return place


def test_a_model_says_how_its_index_was_tuned(place: Workplace) -> None:
    manifest = ModelBundle.load(place.models / "weave").manifest
    assert manifest.index is not None
    assert manifest.index.name == "ivf-pq"
    assert manifest.index.recall_at_1 > 0.8
    assert manifest.index.queries > 100
    assert manifest.spec.index.min_recall == 0.9
    assert "index.faiss" in manifest.files


def test_distances_are_exact_under_an_index(place: Workplace) -> None:
    bundle = ModelBundle.load(place.models / "weave")
    (verdict,) = bundle.score([place.data / "weave" / "test" / "hole" / "000.png"])
    assert bundle.bank.index is not None
    flat = ModelBundle.load(place.models / "weave")
    assert isinstance(flat.bank, MemoryBank)
    flat.bank.index = None
    (exact,) = flat.score([place.data / "weave" / "test" / "hole" / "000.png"])
    assert verdict.neighbor_distances.min(axis=-1) == pytest.approx(
        exact.neighbor_distances.min(axis=-1), rel=0.2
    )
    same = verdict.neighbor_ids[..., 0] == exact.neighbor_ids[..., 0]
    assert same.mean() > 0.8
    np.testing.assert_array_equal(
        verdict.neighbor_distances[..., 0][same], exact.neighbor_distances[..., 0][same]
    )


def test_training_keeps_the_index_and_measures_it_again(place: Workplace, tmp_path: Path) -> None:
    copy = made_up.copied(place, tmp_path)
    before = ModelBundle.load(copy.models / "weave").manifest
    outcome = cfa("train", "-c", "weave", *copy.stores, "--epochs", "1", "--learning-rate", "0.01")
    assert outcome.code == 0, outcome
    after = ModelBundle.load(copy.models / "weave")
    assert after.manifest.generation == "0002"
    assert after.manifest.files["index.faiss"] == before.files["index.faiss"]
    assert after.manifest.index is not None
    assert before.index is not None
    assert after.manifest.index.factory == before.index.factory
    assert after.bank.index is not None


def test_a_damaged_index_is_refused_and_made_again_on_request(place: Workplace, tmp_path: Path) -> None:
    copy = made_up.copied(place, tmp_path)
    image = copy.data / "weave" / "test" / "hole" / "000.png"
    query = ("query", image, "-c", "weave", *copy.model, "-o", tmp_path / "query", "--json", "-")
    whole = cfa(*query).document["images"][0]["score"]
    file = copy.models / "weave" / "generations" / "0001" / "index.faiss"
    file.write_bytes(file.read_bytes()[:-40] + bytes(40))
    assert "index.faiss as it was written" in cfa(*query).error_line
    again = cfa(*query, "--rebuild-index")
    assert again.code == 0, again
    assert again.document["images"][0]["score"] == pytest.approx(whole, rel=1e-6)
    file.unlink()
    assert cfa(*query, "--rebuild-index").code == 0


@pytest.mark.parametrize("name", [name for name in INDEX_NAMES if name != "flat"])
def test_every_name_builds_and_scores(place: Workplace, tmp_path: Path, name: str) -> None:
    built = cfa(
        *("build", "-c", "weave", "--data-root", place.data, "--features-dir", place.features),
        *("--models-dir", tmp_path, *made_up.QUICK, "--index", name, "--json", "-"),
    )
    assert built.code == 0, built
    assert len(built.document["index_trials"]) >= 1
    if name == "auto":
        assert "indexes tried" in built.err
        assert built.err.count("chosen") == 1
    scored = cfa(
        *("score", place.data / "weave" / "test", "-c", "weave", "--models-dir", tmp_path),
        *("-o", tmp_path / "scores"),
    )
    assert scored.code == 0, scored


def test_budgets_that_nothing_fits_fail_before_anything_is_written(place: Workplace, tmp_path: Path) -> None:
    outcome = cfa(
        *("build", "-c", "weave", "--data-root", place.data, "--features-dir", place.features),
        *("--models-dir", tmp_path, *made_up.QUICK, "--budget-memory", "1kB"),
    )
    assert "the nearest miss is" in outcome.err
    assert not (tmp_path / "weave" / "current").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget-memory", "many"), "is not a size such as 64MiB"),
        (("--budget-latency", "20"), "is not a time such as 20ms"),
        (("--min-recall", "99%"), "is not a ratio"),
    ],
)
def test_budgets_that_are_no_budgets_are_bad_usage(
    place: Workplace, options: tuple[str, str], words: str
) -> None:
    outcome = place.build(*options)
    assert outcome.code == 2
    assert words in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--index", "ivff"), "a FAISS factory string"),
        (("--index", "hnsw", "--budget-memory", "1GiB"), "use --index auto"),
        (("--min-recall", "2"), "a share in (0, 1]"),
    ],
)
def test_indexes_that_cannot_be_are_a_line(
    place: Workplace, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    outcome = cfa(
        *("build", "-c", "weave", "--data-root", place.data, "--features-dir", place.features),
        *("--models-dir", tmp_path, *made_up.QUICK, *options),
    )
    assert outcome.code == 1
    assert words in outcome.err


def test_a_model_without_held_out_images_is_tuned_on_its_own_patches(
    place: Workplace, tmp_path: Path
) -> None:
    outcome = cfa(
        *("build", "-c", "weave", "--data-root", place.data, "--features-dir", place.features),
        *("--models-dir", tmp_path, *made_up.QUICK, "--held-out", "0", "--index", "hnsw"),
    )
    assert outcome.code == 0, outcome
    assert "tuned on patches that are in the bank" in outcome.err


def test_an_index_whose_manifest_names_a_parameter_that_it_lacks(place: Workplace, tmp_path: Path) -> None:
    from cfa_index.bundle import set_current
    from cfa_index.files import seal

    copy = made_up.copied(place, tmp_path)
    file = copy.models / "weave" / "generations" / "0001" / "manifest.json"
    document = {key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"}
    document["index"]["parameters"] = {"efSearch": 3}
    file.write_text(json.dumps(seal(document)))
    set_current(copy.models / "weave", "0001")
    image = copy.data / "weave" / "test" / "hole" / "000.png"
    line = cfa("query", image, "-c", "weave", *copy.model, "-o", tmp_path / "query").error_line
    assert "an index with the parameter efSearch" in line


def test_building_by_blocks_is_building_at_once() -> None:
    from vectors import clustered

    xb = clustered(500, 16)
    steps: list[int] = []
    index = build_faiss(xb, "IVF8,SQ8", seed=0, advance=steps.append).index
    assert sum(steps) == 500
    assert index.ntotal == 500
