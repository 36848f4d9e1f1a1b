"""The model directory: a damaged file is noticed, an old manifest is read, a loaded model scores what it is given."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from made_up import Workplace, cfa
from PIL import Image
from safetensors.torch import save_file

import cfa_index
from cfa_index import (
    BundleError,
    Manifest,
    ModelBundle,
    OutputError,
    SpecError,
    WeightsError,
    current_generation,
    list_models,
    load_backbone,
    query,
    read_manifest,
    score_folder,
)
from cfa_index.bundle import set_current, write_generation
from cfa_index.files import seal

FIXTURES = Path(__file__).parent / "fixtures"
FILES = (
    "current",
    "generations/0002/manifest.json",
    "generations/0002/backbone.safetensors",
    "generations/0002/descriptor.safetensors",
    "generations/0002/vectors.npy",
    "generations/0002/baseline.npy",
    "generations/0002/sources.parquet",
    "generations/0002/exemplars.parquet",
    "generations/0002/train_log.csv",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A built and trained category that no test of this file changes."""
    place = made_up.built_workplace(tmp_path_factory.mktemp("place"))
    assert cfa("train", "-c", "weave", *place.stores).code == 0
    return place


@pytest.fixture(scope="module")
def bundle(place: Workplace) -> ModelBundle:
    return ModelBundle.load(place.models / "weave")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_files_of_a_model_are_those_that_the_next_test_damages(place: Workplace) -> None:
    present = {path for path in made_up.tree(place.models / "weave") if "0001" not in path}
    assert present - {".lock"} == set(FILES)  # the lock is empty


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_in_any_file_is_noticed(
    place: Workplace, tmp_path: Path, file: str, where: str
) -> None:
    model = shutil.copytree(place.models / "weave", tmp_path / "weave")
    size = (model / file).stat().st_size
    flip(model / file, {"first": 0, "middle": size // 2, "last": size - 1}[where])
    with pytest.raises(BundleError, match="as it was written"):
        ModelBundle.load(model)


def test_every_byte_of_the_pointer_counts(place: Workplace, tmp_path: Path) -> None:
    model = shutil.copytree(place.models / "weave", tmp_path / "weave")
    whole = (model / "current").read_bytes()
    for position in range(len(whole)):
        flip(model / "current", position)
        with pytest.raises(BundleError, match="current as it was written"):
            current_generation(model)
        (model / "current").write_bytes(whole)
    for content in (b"", whole[:-1], whole * 2, b"\xff" * 70, b"../0001 " + whole[5:]):
        (model / "current").write_bytes(content)
        with pytest.raises(BundleError, match="current as it was written"):
            current_generation(model)


@settings(max_examples=300)
@given(share=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_manifest_with_any_byte_changed_is_refused_or_the_same(
    place: Workplace, tmp_path_factory: pytest.TempPathFactory, share: float, byte: int
) -> None:
    """Read by itself, without the pointer's checksum: a change of blanks may pass, one of a value may not."""
    file = place.models / "weave" / "generations" / "0002" / "manifest.json"
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] = byte
    folder = tmp_path_factory.mktemp("changed")
    (folder / "manifest.json").write_bytes(content)
    with suppress(BundleError):
        assert read_manifest(folder) == read_manifest(file.parent)


@pytest.mark.parametrize("file", [name for name in FILES if name != "current"])
def test_a_missing_file_is_noticed_by_every_command(place: Workplace, tmp_path: Path, file: str) -> None:
    shutil.copytree(place.models / "weave", tmp_path / "weave")
    (tmp_path / "weave" / file).unlink()
    image = place.data / "weave" / "test" / "hole" / "000.png"
    outcome = cfa("query", image, "-c", "weave", "--models-dir", tmp_path, "-o", tmp_path / "query")
    assert outcome.error_line
    assert not (tmp_path / "query").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"schema_version": true}', b"[" * 100_000],
)
def test_what_is_no_manifest_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="as it was written"):
        read_manifest(tmp_path)


def test_a_manifest_of_a_newer_version(place: Workplace, tmp_path: Path) -> None:
    """As a newer cfa-index would leave it: pointer and seal are right, and there are keys unheard of."""
    model = shutil.copytree(place.models / "weave", tmp_path / "weave")
    file = model / "generations" / "0002" / "manifest.json"
    document = {key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"}
    file.write_text(json.dumps(seal({**document, "schema_version": 4, "shards": 3})))
    set_current(model, "0002")
    with pytest.raises(BundleError, match=r"version 3 or older.*got version 4; upgrade cfa-index"):
        ModelBundle.load(model)
    line = cfa("train", "-c", "weave", "--models-dir", tmp_path, "--features-dir", place.features).error_line
    assert "upgrade cfa-index" in line


@pytest.mark.parametrize(
    "change", [{"surprise": 1}, {"radius": None}, {"spec": {}}, {"weights": {"source": "x"}}]
)
def test_a_sealed_manifest_with_other_keys_is_refused(
    place: Workplace, tmp_path: Path, change: dict[str, object]
) -> None:
    document = json.loads((place.models / "weave" / "generations" / "0002" / "manifest.json").read_text())
    document = {
        key: value for key, value in {**document, **change}.items() if key != "sha256" and value is not None
    }
    (tmp_path / "manifest.json").write_text(json.dumps(seal(document)))
    with pytest.raises(BundleError):
        read_manifest(tmp_path)


def test_a_manifest_of_schema_version_1_is_still_read() -> None:
    """Written on the day version 1 was made; this file is never written again."""
    manifest = read_manifest(FIXTURES / "manifest-v1")
    assert (manifest.category, manifest.generation, manifest.parent, manifest.action) == (
        "weave",
        "0002",
        "0001",
        "train",
    )
    assert manifest.spec.bank.size == 32
    assert manifest.spec.features.strides == (4, 8)
    assert manifest.weights.is_random
    assert len(manifest.held_out.scores) == 4
    assert manifest.threshold is not None
    assert manifest.threshold.value == max(manifest.held_out.scores)
    assert manifest.spec.score.baseline == "none"
    assert set(manifest.files) == {Path(name).name for name in FILES} - {
        "baseline.npy",
        "current",
        "manifest.json",
    }


def test_a_manifest_of_schema_version_1_means_what_it_meant() -> None:
    spec = read_manifest(FIXTURES / "manifest-v1").spec
    assert (spec.bank.method, spec.bank.share, spec.bank.coverage) == ("kmeans", None, 0.5)
    assert (spec.descriptor.expansion, spec.score.baseline) == (1.0, "none")
    assert (spec.train.learn_radius, spec.train.select) == (True, "none")


def test_a_manifest_of_schema_version_2_is_still_read() -> None:
    """Written on the day version 2 was made; this file is never written again."""
    manifest = read_manifest(FIXTURES / "manifest-v2")
    assert (manifest.category, manifest.generation, manifest.action) == ("weave", "0002", "train")
    assert (manifest.spec.bank.method, manifest.spec.score.baseline) == ("hybrid", "position")
    assert "baseline.npy" in manifest.files


def test_manifests_come_back_as_they_were(bundle: ModelBundle, tmp_path: Path) -> None:
    document = bundle.manifest.to_dict()
    assert Manifest.from_dict(json.loads(json.dumps(document)), tmp_path) == bundle.manifest
    bare = replace(bundle.manifest, threshold=None, category='部品 "1"')
    assert Manifest.from_dict(json.loads(json.dumps(bare.to_dict())), tmp_path) == bare


def test_temporary_folders_and_strangers_among_the_generations_are_ignored(
    place: Workplace, tmp_path: Path
) -> None:
    model = shutil.copytree(place.models / "weave", tmp_path / "weave")
    for name in (".0003.123.tmp", "notes", "7up", "²"):
        (model / "generations" / name).mkdir()
    assert ModelBundle.load(model).manifest.generation == "0002"
    folder, manifest = write_generation(model, ModelBundle.load(model).manifest, {"note.txt": b"x"})
    assert (folder.name, manifest.generation) == ("0003", "0003")
    assert list_models(tmp_path) == ["weave"]


def test_a_write_that_fails_leaves_everything_as_it_was(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(place.models / "weave", tmp_path / "weave")
    manifest, before = read_manifest(current_generation(model)), made_up.tree(model)
    with pytest.raises(OutputError, match="No such file"):
        write_generation(model, manifest, {"a.bin": b"1", "b.bin": tmp_path / "not there"})
    assert made_up.tree(model) == before
    assert not made_up.leftovers(model)
    assert not (model / "generations" / "0003").exists()


def test_no_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="run cfa-index build first"):
        ModelBundle.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match="run cfa-index build first"):
        list_models(tmp_path / "nothing")
    assert "run cfa-index build first" in cfa("train", "-c", "all", "--models-dir", tmp_path).error_line
    assert "run cfa-index build first" in cfa("train", "-c", "x", "--models-dir", tmp_path).error_line


# ---------------------------------------------------------------------------------------- scoring


def test_the_same_picture_scores_the_same_however_it_is_given(
    place: Workplace, bundle: ModelBundle, tmp_path: Path
) -> None:
    path = place.data / "weave" / "test" / "hole" / "000.png"
    pixels = np.array(Image.open(path))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    pictures: list[Any] = [path, str(path), Image.open(path), pixels, tensor, tensor.float() / 255]
    scored = bundle.score(pictures)
    assert len({image.score for image in scored}) == 1
    assert scored[0].is_anomalous
    for image in scored[1:]:
        assert np.array_equal(image.anomaly_map, scored[0].anomaly_map)


def test_a_score_does_not_depend_on_its_batch(bundle: ModelBundle) -> None:
    images = [made_up.texture(number) for number in range(20)]
    alone = [bundle.score([image])[0] for image in images]
    for batch_size in (3, 20):
        together = bundle.score(images, batch_size=batch_size)
        np.testing.assert_allclose(
            [image.score for image in together], [image.score for image in alone], rtol=1e-5
        )
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=1e-4, atol=1e-5)


def test_what_a_score_holds(bundle: ModelBundle) -> None:
    grid, k = (16, 16), bundle.manifest.spec.score.neighbors
    [image] = bundle.score([made_up.texture(3, width=90, height=50)])
    assert image.anomaly_map.shape == (made_up.SIDE_PX, made_up.SIDE_PX)
    assert image.anomaly_map.dtype == np.float32
    assert image.patch_scores.shape == grid
    assert image.neighbor_ids.shape == image.neighbor_distances.shape == (*grid, k)
    assert (np.diff(image.neighbor_distances, axis=-1) >= 0).all()
    assert (image.frame.source_width, image.frame.source_height) == (90, 50)
    assert image.score == pytest.approx(float(image.anomaly_map.max()))
    assert image.neighbor_ids.min() >= 0
    assert image.neighbor_ids.max() < len(bundle.bank)
    assert bundle.score([]) == []


def test_the_threshold_can_be_given(bundle: ModelBundle) -> None:
    picture = made_up.texture(3)
    score = bundle.score([picture])[0].score
    assert bundle.score([picture], threshold=score)[0].is_anomalous is False  # above, not at
    assert bundle.score([picture], threshold=score - 1e-3)[0].is_anomalous is True


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -float("inf")])
def test_a_threshold_that_is_not_finite(
    place: Workplace, bundle: ModelBundle, tmp_path: Path, threshold: float
) -> None:
    folder = place.data / "weave" / "test"
    calls = (
        lambda: bundle.score([made_up.texture(3)], threshold=threshold),
        lambda: query(bundle, folder / "hole" / "000.png", threshold=threshold),
        lambda: score_folder(bundle, folder, tmp_path / "out", threshold=threshold),
    )
    for call in calls:
        with pytest.raises(SpecError, match="threshold to be a finite number"):
            call()
    assert not (tmp_path / "out").exists()


def test_weights_for_a_model_that_holds_its_own_must_be_the_same(place: Workplace, tmp_path: Path) -> None:
    model = place.models / "weave"
    with pytest.raises(WeightsError, match="no such file"):
        ModelBundle.load(model, weights=tmp_path / "nowhere.pth")
    same, others = tmp_path / "same.safetensors", tmp_path / "others.safetensors"
    for seed, file in enumerate((same, others)):
        save_file(load_backbone("resnet18", (4, 8), weights="random", seed=seed).state_tensors(), file)
    with pytest.raises(BundleError, match="leave out --weights"):
        ModelBundle.load(model, weights=others)
    picture = [made_up.texture(3)]
    given, own = (ModelBundle.load(model, weights=weights).score(picture) for weights in (same, None))
    assert given[0].score == own[0].score


def test_every_memory_has_a_source_and_a_picture(place: Workplace, bundle: ModelBundle) -> None:
    assert len(bundle.sources) == len(bundle.exemplars) == len(bundle.bank) == 32
    for source, crop in zip(bundle.sources, bundle.exemplars, strict=True):
        assert (place.data / "weave" / source.uri).is_file()
        left, top, right, bottom = source.box
        assert 0 <= left < right <= made_up.SIDE_PX
        assert 0 <= top < bottom <= made_up.SIDE_PX
        assert crop.startswith(b"\xff\xd8\xff")
    assert not {source.uri for source in bundle.sources} & set(bundle.manifest.held_out.uris)


def test_the_threshold_is_that_of_the_held_out_images_scored_again(
    place: Workplace, bundle: ModelBundle
) -> None:
    uris = bundle.manifest.held_out.uris
    scores = [image.score for image in bundle.score([place.data / "weave" / uri for uri in uris])]
    # The store keeps features in half precision.
    np.testing.assert_allclose(scores, bundle.manifest.held_out.scores, rtol=5e-3)
    assert bundle.threshold == max(bundle.manifest.held_out.scores)  # 4 images cannot support 5%


def test_every_public_name_is_there() -> None:
    names: list[str] = vars(cfa_index)["__all__"]
    assert "ModelBundle" in names
    for name in names:
        assert getattr(cfa_index, name) is not None, name
        assert name in dir(cfa_index)
    with pytest.raises(AttributeError):
        _ = cfa_index.no_such_name  # type: ignore[attr-defined]
