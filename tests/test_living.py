"""Living banks: images come and go, the index changes, generations are checked and rolled back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import made_up
import numpy as np
import pytest
from living import bank, copied, manifest, names, new_folder, scores
from made_up import Workplace, cfa

from cfa_index import ModelBundle, add_images, current_generation
from cfa_index.bundle import category_lock
from cfa_index.errors import BundleError

METHODS = ("hybrid", "kmeans", "ema", "mean", "coreset", "random", "full")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workplace]:
    """`weave` built with each method, from one store; new good images beside it."""
    root = tmp_path_factory.mktemp("places")
    data = made_up.workplace(root / "shared")
    made_up.write_good(root / "new", 10, first=500)
    found = {}
    for method in METHODS:
        place = Workplace(root=root / method)
        shutil.copytree(data.data, place.data)
        size = () if method == "full" else ("--bank-size", "48")
        quick = made_up.QUICK[:-2]
        outcome = cfa("build", "-c", "weave", *place.everything, *quick, *size, "--method", method)
        assert outcome.code == 0, outcome
        found[method] = place
    return found


@pytest.fixture
def place(places: dict[str, Workplace], tmp_path: Path) -> Workplace:
    return copied(places["hybrid"], tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_add_then_remove_brings_the_scores_back(
    places: dict[str, Workplace], tmp_path: Path, method: str
) -> None:
    place = copied(places[method], tmp_path)
    before, then = scores(place), manifest(place)
    added = bank("add", place, new_folder(place))
    assert added.code == 0, added
    assert added.document["action"] == "add"
    assert len(added.document["images"]) == 10
    assert added.document["memories"] > added.document["memories_before"]
    grown = manifest(place)
    assert len(grown.held_out.uris) == len(then.held_out.uris) + 2
    assert not np.array_equal(scores(place), before)

    removed = bank("remove", place, *names(added.document["images"]))
    assert removed.code == 0, removed
    after = manifest(place)
    np.testing.assert_array_equal(scores(place), before)
    assert (after.held_out, after.threshold, after.added, after.removed) == (
        then.held_out,
        then.threshold,
        (),
        (),
    )
    assert after.files["vectors.npy"] == then.files["vectors.npy"]
    assert after.files["sources.parquet"] == then.files["sources.parquet"]


@pytest.mark.parametrize("index", ["pca-refine", "ivf-pq", "ivf-sq8", "hnsw"])
def test_so_it_does_under_an_index(places: dict[str, Workplace], tmp_path: Path, index: str) -> None:
    place = copied(places["full"], tmp_path)
    reindexed = bank("reindex", place, "--index", index, "--min-recall", "0.9")
    assert reindexed.code == 0, reindexed
    before, then = scores(place), manifest(place)
    added = bank("add", place, new_folder(place))
    assert added.code == 0, added
    grown = ModelBundle.load(place.models / "weave")
    assert grown.bank.index is not None
    assert grown.bank.index.count == added.document["memories"]
    removed = bank("remove", place, *names(added.document["images"]))
    assert removed.code == 0, removed
    np.testing.assert_array_equal(scores(place), before)
    after = manifest(place)
    assert after.index == then.index
    assert after.files["index.faiss"] == then.files["index.faiss"]


def test_part_of_what_was_added_can_go(place: Workplace) -> None:
    added = bank("add", place, new_folder(place)).document
    held = set(manifest(place).held_out.uris)
    in_bank = [uri for uri in added["images"] if uri not in held]
    removed = bank("remove", place, "--image", Path(in_bank[0]).name)
    assert removed.code == 0, removed
    assert [one.removed for one in manifest(place).added] == [(in_bank[0],)]
    info = bank("info", place, stores=False).document
    assert in_bank[0] not in info["memories_by_image"]
    assert len(set(info["memories_by_image"]) & set(in_bank)) >= 1


@pytest.mark.parametrize("method", ["full", "random", "coreset"])
def test_an_image_of_the_build_leaves_a_bank_of_patches(
    places: dict[str, Workplace], tmp_path: Path, method: str
) -> None:
    place = copied(places[method], tmp_path)
    counts = bank("info", place, stores=False).document["memories_by_image"]
    uri, memories = next(iter(counts.items()))
    removed = bank("remove", place, "--image", uri).document
    assert removed["memories"] == removed["memories_before"] - memories
    assert uri not in bank("info", place, stores=False).document["memories_by_image"]


@pytest.mark.parametrize("method", ["hybrid", "kmeans", "ema", "mean"])
def test_a_mean_cannot_lose_an_image_but_can_be_fitted_again(
    places: dict[str, Workplace], tmp_path: Path, method: str
) -> None:
    place = copied(places[method], tmp_path)
    held = set(manifest(place).held_out.uris)
    uri = next(f"train/good/{n:03d}.png" for n in range(20) if f"train/good/{n:03d}.png" not in held)
    refused = cfa("bank", "remove", "--image", uri, "-c", "weave", *place.stores)
    assert f"method {method}, whose memories are means" in refused.error_line
    assert "--rebuild" in refused.error_line
    assert manifest(place).generation == "0001"
    rebuilt = bank("remove", place, "--image", uri, "--rebuild")
    assert rebuilt.code == 0, rebuilt
    after = manifest(place)
    assert (after.action, after.removed, after.images) == ("rebuild", (uri,), 19)
    assert uri not in bank("info", place, stores=False).document["memories_by_image"]


def test_a_rebuild_is_a_build_without_the_image(place: Workplace, tmp_path: Path) -> None:
    """Held-out membership is drawn from all images, so the oracle is the same split less the image."""
    held = set(manifest(place).held_out.uris)
    uri = next(f"train/good/{n:03d}.png" for n in range(20) if f"train/good/{n:03d}.png" not in held)
    rebuilt = bank("remove", place, "--image", uri, "--rebuild")
    assert rebuilt.code == 0, rebuilt
    again = manifest(place)
    assert set(again.held_out.uris) == held
    second = bank("remove", place, "--image", sorted(held)[0])
    assert second.code == 0, second
    assert set(manifest(place).held_out.uris) == held - {sorted(held)[0]}


def test_a_held_out_image_leaves_any_bank(place: Workplace) -> None:
    then = manifest(place)
    removed = bank("remove", place, "--image", then.held_out.uris[0])
    assert removed.code == 0, removed
    after = manifest(place)
    assert after.held_out.uris == then.held_out.uris[1:]
    assert after.held_out.scores == pytest.approx(then.held_out.scores[1:], rel=1e-5)
    assert after.files["vectors.npy"] == then.files["vectors.npy"]


def test_training_goes_on_from_a_grown_bank(place: Workplace) -> None:
    added = bank("add", place, new_folder(place)).document
    trained = cfa("train", "-c", "weave", *place.stores, "--epochs", "1", "--json", "-")
    assert trained.code == 0, trained
    after = manifest(place)
    assert (after.action, after.parent) == ("train", added["generation"])
    assert len(after.added) == 1
    assert len(after.held_out.uris) == 6
    removed = bank("remove", place, *names(added["images"]))
    assert removed.code == 0, removed
    assert manifest(place).added == ()


def test_a_reader_is_not_disturbed(place: Workplace) -> None:
    old = ModelBundle.load(place.models / "weave")
    image = place.data / "weave" / "test" / "hole" / "000.png"
    before = old.score([image])[0].score
    bank("add", place, new_folder(place))
    assert old.score([image])[0].score == before
    assert ModelBundle.load(place.models / "weave").manifest.generation == "0002"


def test_rollback_moves_the_pointer_only(place: Workplace) -> None:
    before = scores(place)
    bank("add", place, new_folder(place))
    files = made_up.tree(place.models / "weave" / "generations")
    back = bank("rollback", place, stores=False)
    assert back.document["generation"] == "0001"
    assert made_up.tree(place.models / "weave" / "generations") == files
    np.testing.assert_array_equal(scores(place), before)
    assert bank("rollback", place, "--to", "0002", stores=False).document["generation"] == "0002"
    wrong = cfa("bank", "rollback", "--to", "7", "-c", "weave", *place.model)
    assert "0001, 0002 there" in wrong.error_line
    bank("rollback", place, stores=False)
    first = cfa("bank", "rollback", "-c", "weave", *place.model)
    assert "a first build" in first.error_line


def test_a_damaged_generation_is_not_rolled_back_to(place: Workplace) -> None:
    bank("add", place, new_folder(place))
    file = place.models / "weave" / "generations" / "0001" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert "vectors.npy as it was written" in cfa("bank", "rollback", "-c", "weave", *place.model).error_line
    assert current_generation(place.models / "weave").name == "0002"


def test_info_names_parts_images_and_generations(place: Workplace) -> None:
    bank("add", place, new_folder(place))
    shown = cfa("bank", "info", "-c", "weave", *place.model)
    assert shown.code == 0, shown
    for words in ("hybrid", "flat, exact", "vectors.npy", "0002 (in use)", "memories by image", "--images"):
        assert words in shown.err
    document = bank("info", place, stores=False).document
    assert document["bytes"]["vectors.npy"] == 128 + 4 * document["memories"] * document["width"]
    assert sum(document["memories_by_image"].values()) == document["memories"]
    assert [one["action"] for one in document["lineage"]] == ["build", "add"]
    first = bank("info", place, "--generation", "0001", stores=False).document
    assert (first["generation"], first["current"]) == ("0001", "0002")
    every = cfa("bank", "info", "-c", "weave", "--images", *place.model)
    assert "--images" not in every.err


def test_verify_lists_every_damage(place: Workplace) -> None:
    bank("reindex", place, "--index", "hnsw")
    whole = cfa("bank", "verify", "-c", "weave", *place.model)
    assert (whole.code, "all as it was written" in whole.err) == (0, True)
    folder = place.models / "weave" / "generations"
    (folder / "0001" / "baseline.npy").unlink()
    (folder / "0002" / "index.faiss").write_bytes(b"no index")
    (folder / "0002" / "sources.parquet").write_bytes(b"no table")
    (place.models / "weave" / "current").write_text("0009 x\n")
    found = bank("verify", place, stores=False)
    assert found.code == 1
    messages = {(one["generation"], one["message"]) for one in found.document["findings"]}
    assert ("0001", "baseline.npy is missing") in messages
    assert ("0002", "index.faiss differs from its checksum") in messages
    assert ("0002", "sources.parquet differs from its checksum") in messages
    assert any(generation == "" for generation, _ in messages)


def test_verify_looks_memories_up(place: Workplace) -> None:
    """An index over the same number of other vectors, with checksums that fit."""
    from cfa_index.bank import build_faiss
    from cfa_index.bundle import set_current
    from cfa_index.files import seal, sha256_of_file

    bank("reindex", place, "--index", "IVF4,SQ8", "--min-recall", "0.5")
    folder = place.models / "weave" / "generations" / "0002"
    vectors = np.load(folder / "vectors.npy")
    import faiss

    other = build_faiss(np.random.default_rng(0).permutation(-vectors), "IVF4,SQ8", seed=0).index
    faiss.write_index(other, str(folder / "index.faiss"))
    document = json.loads((folder / "manifest.json").read_text())
    document.pop("sha256")
    document["files"]["index.faiss"] = sha256_of_file(folder / "index.faiss")
    document["index"]["parameters"] = {"nprobe": 1}
    document["index"]["shortlist"] = 1
    (folder / "manifest.json").write_text(json.dumps(seal(document)))
    set_current(place.models / "weave", "0002")
    found = bank("verify", place, stores=False)
    assert found.code == 1
    assert "memories do not find themselves" in found.err


def test_what_is_there_already_is_not_added_again(place: Workplace, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(place.data / "weave" / "train" / "good" / "003.png", again / "renamed.png")
    refused = cfa("bank", "add", again, "-c", "weave", *place.stores)
    assert "has the content of train/good/003.png" in refused.err
    assert "good images that the model does not have" in refused.err
    assert refused.code == 1
    assert manifest(place).generation == "0001"
    shutil.copy(new_folder(place) / "500.png", again / "fresh.png")
    assert bank("add", place, again).document["images"] == [str(again / "fresh.png")]


def test_broken_images_are_left_out(place: Workplace, tmp_path: Path) -> None:
    folder = made_up.write_good(tmp_path / "mixed", 3, first=700)
    (folder / "broken.png").write_bytes(b"no image")
    outcome = bank("add", place, folder)
    assert outcome.code == 3
    assert outcome.document["images_rejected"] == 1
    assert len(outcome.document["images"]) == 3


@pytest.mark.parametrize("given", ["missing.png", "empty"])
def test_nothing_to_add_is_a_line(place: Workplace, tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    line = cfa("bank", "add", tmp_path / given, "-c", "weave", *place.stores).error_line
    assert given in line


def test_names_that_fit_none_or_several(place: Workplace, tmp_path: Path) -> None:
    line = cfa("bank", "remove", "--image", "nobody.png", "-c", "weave", *place.stores).error_line
    assert "bank info --images" in line
    folder = made_up.write_good(tmp_path / "more", 1, first=800)
    (folder / "800.png").rename(folder / "000.png")
    bank("add", place, folder)
    several = cfa("bank", "remove", "--image", "000.png", "-c", "weave", *place.stores).error_line
    assert "give its whole path" in several
    by_path = bank("remove", place, "--image", folder / "000.png")
    assert by_path.code == 0, by_path


def test_all_images_cannot_go(places: dict[str, Workplace], tmp_path: Path) -> None:
    place = copied(places["full"], tmp_path)
    images = [f"train/good/{number:03d}.png" for number in range(20)]
    line = cfa("bank", "remove", *names(images), "-c", "weave", *place.stores).error_line
    assert "at least one good image to stay" in line


def test_without_its_store_a_bank_cannot_change(place: Workplace) -> None:
    shutil.rmtree(place.features)
    line = cfa("bank", "add", new_folder(place), "-c", "weave", *place.stores).error_line
    assert "run build again" in line


def test_two_writers(place: Workplace) -> None:
    with category_lock(place.models / "weave"), pytest.raises(BundleError, match="only writer"):
        add_images(place.models, "weave", [new_folder(place)], features_dir=place.features)


def test_reindex_needs_a_name_and_can_go_back_to_flat(place: Workplace) -> None:
    assert cfa("bank", "reindex", "-c", "weave", *place.stores).code == 2
    before = scores(place)
    assert bank("reindex", place, "--index", "ivf-sq8").document["index"]["name"] == "ivf-sq8"
    assert bank("reindex", place, "--index", "flat").document["index"] is None
    np.testing.assert_array_equal(scores(place), before)


def test_no_model_is_a_line(tmp_path: Path) -> None:
    for command in ("info", "verify", "rollback"):
        line = cfa("bank", command, "-c", "weave", "--models-dir", tmp_path).error_line
        assert "run cfa-index build first" in line


@pytest.mark.parametrize("command", [("add", "x.png"), ("remove", "--image", "x.png"), ("rollback",)])
def test_a_typo_leaves_no_folder(tmp_path: Path, command: tuple[str, ...]) -> None:
    folders = () if command[0] == "rollback" else ("--features-dir", tmp_path / "features")
    line = cfa("bank", *command, "-c", "typo", "--models-dir", tmp_path / "models", *folders).error_line
    assert "run cfa-index build first" in line
    assert not (tmp_path / "models").exists()
