"""Who is in a living bank: images that return, change, chose or were averaged, and indexes that are lent."""

from __future__ import annotations

import shutil
from pathlib import Path

import made_up
import numpy as np
import pytest
from living import bank, built, copied, manifest, names, new_folder, scores
from made_up import Workplace, cfa

from cfa_index import ModelBundle, remove_images
from cfa_index.errors import BankError


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return built(tmp_path_factory.mktemp("hybrid"), "hybrid", "--held-out", "1/2")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return built(tmp_path_factory.mktemp("full"), "full")


@pytest.fixture
def place(hybrid: Workplace, tmp_path: Path) -> Workplace:
    return copied(hybrid, tmp_path)


def in_bank(place: Workplace, images: list[str]) -> list[str]:
    held = set(manifest(place).held_out.uris)
    return [uri for uri in images if uri not in held]


def test_averages_that_have_seen_an_added_image_cannot_lose_it(place: Workplace) -> None:
    """Fitted again, the bank is averages over the added images too."""
    added = bank("add", place, new_folder(place)).document
    first, second, *_ = in_bank(place, added["images"])
    rebuilt = bank("remove", place, "--image", first, "--rebuild")
    assert rebuilt.code == 0, rebuilt
    refused = cfa("bank", "remove", "--image", second, "-c", "weave", *place.stores)
    assert "--rebuild" in refused.error_line
    assert second in refused.error_line


def test_an_image_may_come_back(place: Workplace) -> None:
    """Of an addition that is still there in part."""
    added = bank("add", place, new_folder(place)).document
    uri = in_bank(place, added["images"])[0]
    assert bank("remove", place, "--image", uri).code == 0
    again = bank("add", place, uri)
    assert again.code == 0, again
    assert again.document["images"] == [uri]
    assert again.document["memories"] > again.document["memories_before"]
    assert manifest(place).images == 30
    gone = bank("remove", place, "--image", uri)
    assert gone.code == 0, gone
    assert gone.document["memories"] == again.document["memories_before"]


def test_a_changed_file_of_the_model_is_not_added_beside_itself(place: Workplace, tmp_path: Path) -> None:
    lot = made_up.write_good(tmp_path / "lot", 2, first=600)
    assert bank("add", place, lot).code == 0
    made_up.write_image(lot / "600.png", made_up.texture(900))
    refused = cfa("bank", "add", lot, "-c", "weave", *place.stores)
    assert refused.code == 1
    assert "good images that the model does not have" in refused.err
    assert manifest(place).generation == "0002"


def test_images_that_chose_never_set_the_threshold(place: Workplace) -> None:
    """Neither after an addition and another choice, nor after everything was fitted again."""
    before = set(manifest(place).held_out.uris)
    train = ("train", "-c", "weave", *place.stores, "--epochs", "1", "--select", "synthetic")
    assert cfa(*train).code == 0
    chose = before - set(manifest(place).held_out.uris)
    assert chose
    assert bank("add", place, new_folder(place)).code == 0
    assert not chose & set(manifest(place).held_out.uris)
    assert cfa(*train).code == 0
    assert not chose & set(manifest(place).held_out.uris)
    uri = in_bank(place, [f"train/good/{n:03d}.png" for n in range(20)])
    leaving = next(one for one in uri if one not in before)
    assert bank("remove", place, "--image", leaving, "--rebuild").code == 0
    assert not chose & set(manifest(place).held_out.uris)


def test_a_part_of_what_was_added_leaves_a_bank_of_as_many_memories_as_positions(tmp_path: Path) -> None:
    """The paper's own size, M = h*w: the memories that were added are beyond it."""
    place = built(tmp_path, "ema", "--bank-size", "256")
    added = bank("add", place, new_folder(place)).document
    removed = bank("remove", place, "--image", in_bank(place, added["images"])[0])
    assert removed.code == 0, removed
    assert removed.document["memories"] >= 256


@pytest.mark.parametrize("index", ["IVF4,Flat", "ivf-sq8"])
def test_a_lent_index_stands_alone(full: Workplace, tmp_path: Path, index: str) -> None:
    """It is the file of the generation that lends it, and needs no other file afterwards."""
    place = copied(full, tmp_path)
    assert bank("reindex", place, "--index", index, "--min-recall", "0.9").code == 0
    before, then = scores(place), manifest(place)
    added = bank("add", place, new_folder(place))
    assert added.code == 0, added
    removed = bank("remove", place, *names(added.document["images"]))
    assert removed.code == 0, removed
    assert manifest(place).files["index.faiss"] == then.files["index.faiss"]
    for generation in ("0001", "0002", "0003"):
        shutil.rmtree(place.models / "weave" / "generations" / generation)
    np.testing.assert_array_equal(scores(place), before)


def test_an_index_of_another_kind_is_not_lent(full: Workplace, tmp_path: Path) -> None:
    place = copied(full, tmp_path)
    assert bank("reindex", place, "--index", "flat16").code == 0
    added = bank("add", place, new_folder(place)).document
    assert bank("reindex", place, "--index", "ivf-sq8", "--min-recall", "0.9").code == 0
    removed = bank("remove", place, *names(added["images"]))
    assert removed.code == 0, removed
    assert removed.document["index"]["name"] == "ivf-sq8"


def test_a_damaged_generation_neither_lends_nor_hinders(full: Workplace, tmp_path: Path) -> None:
    place = copied(full, tmp_path)
    assert bank("reindex", place, "--index", "flat16").code == 0
    before = scores(place)
    added = bank("add", place, new_folder(place)).document
    folder = place.models / "weave" / "generations"
    (folder / "0001" / "manifest.json").write_text("no manifest")
    (folder / "0002" / "index.faiss").write_bytes(b"no index")
    info = bank("info", place, stores=False)
    assert info.code == 0, info
    assert [one["action"] for one in info.document["lineage"]] == ["damaged", "reindex", "add"]
    removed = bank("remove", place, *names(added["images"]))
    assert removed.code == 0, removed
    np.testing.assert_allclose(scores(place), before, rtol=1e-5)


def test_an_image_is_known_by_a_path_through_a_link(place: Workplace) -> None:
    """`data` is a link in these workplaces; the model knows the folder behind it."""
    uri = manifest(place).held_out.uris[0]
    removed = bank("remove", place, "--image", place.data / "weave" / uri)
    assert removed.code == 0, removed
    assert removed.document["images"] == [uri]


def test_info_lists_held_out_images_and_those_without_a_memory(place: Workplace) -> None:
    assert bank("add", place, new_folder(place)).code == 0
    document = bank("info", place, "--images").document
    assert document["additions"] == 1
    listed = {one["uri"]: one for one in document["source_images"]}
    assert {uri for uri, one in listed.items() if one["held_out"]} == set(manifest(place).held_out.uris)
    assert len(listed) == document["images"] == 30
    shown = cfa("bank", "info", "--images", "-c", "weave", *place.stores)
    assert "held out" in shown.err


def test_a_letterbox_adds_only_what_shows_the_image(tmp_path: Path) -> None:
    place = built(tmp_path, "coreset", "--geometry", "letterbox")
    lot = tmp_path / "wide"
    for number in range(3):
        made_up.write_image(lot / f"{number}.png", made_up.texture(number + 700, width=96, height=48))
    added = bank("add", place, lot)
    assert added.code == 0, added
    bundle = ModelBundle.load(place.models / "weave")
    new = [source for source in bundle.sources if source.uri.startswith(str(lot))]
    assert new
    assert all(0 <= s.box[1] < s.box[3] <= 48 for s in new)


@pytest.mark.parametrize("step", ["extract", "calibrated_scorer", "write_generation"])
def test_what_is_interrupted_leaves_nothing_and_can_run_again(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from cfa_index.workflows import additions, changes

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = made_up.tree(place.models)
    with monkeypatch.context() as patched:
        patched.setattr(additions if step == "extract" else changes, step, interrupt)
        assert bank("add", place, new_folder(place)).code == 130
    assert made_up.tree(place.models) == before
    assert not made_up.leftovers(place.root)
    assert bank("add", place, new_folder(place)).code == 0


def test_features_of_an_addition_that_are_gone_come_back_as_the_error_says(place: Workplace) -> None:
    assert bank("add", place, new_folder(place)).code == 0
    before = scores(place)
    shutil.rmtree(next((place.features / "weave").glob("added-*")))
    line = cfa("train", "-c", "weave", *place.stores, "--epochs", "1").error_line
    assert "bank rollback to a generation before, then bank add again" in line
    assert bank("rollback", place, stores=False).code == 0
    assert bank("add", place, new_folder(place)).code == 0
    np.testing.assert_array_equal(scores(place), before)


def test_no_name_removes_nothing(place: Workplace) -> None:
    with pytest.raises(BankError, match="--image"):
        remove_images(place.models, "weave", [], features_dir=place.features)
    assert manifest(place).generation == "0001"


def test_rollback_takes_a_plain_number_and_says_what_changed(place: Workplace) -> None:
    bank("add", place, new_folder(place))
    back = bank("rollback", place, "--to", "1", stores=False)
    assert back.code == 0, back
    assert (back.document["generation"], back.document["from"]) == ("0001", "0002")
    assert back.document["images"] == 20
    assert back.document["images_before"] == 30
    assert "0002 (add, 30 images" in back.err
    line = cfa("bank", "rollback", "--to", "../0001", "-c", "weave", *place.model).error_line
    assert "0001, 0002 there" in line


def test_verify_measures_the_recall_again(full: Workplace, tmp_path: Path) -> None:
    """Memories find themselves in their own cells, whatever becomes of other queries."""
    import json

    from cfa_index.bundle import set_current
    from cfa_index.files import seal

    place = copied(full, tmp_path)
    assert bank("reindex", place, "--index", "IVF64,Flat", "--min-recall", "0.999").code == 0
    assert bank("verify", place).code == 0
    file = place.models / "weave" / "generations" / "0002" / "manifest.json"
    document = json.loads(file.read_text())
    document.pop("sha256")
    document["index"]["parameters"] = {"nprobe": 1}
    file.write_text(json.dumps(seal(document)))
    set_current(place.models / "weave", "0002")
    found = bank("verify", place)
    assert found.code == 1
    assert "recall@1" in found.err
