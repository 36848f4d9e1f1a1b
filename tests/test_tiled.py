"""A category of images larger than a tile, of uneven sizes, and one smaller: the whole way, image by image."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from cfa_index_cli.model_options import tile_settings
from made_up import QUICK, Outcome, Workplace, cfa, copied, texture, write_image

from cfa_index.bundle import ModelBundle, current_generation, read_manifest
from cfa_index.errors import SpecError
from cfa_index.images import frames_of, tile_boxes, view_count
from cfa_index.specs import BankSpec, FeatureSpec, ModelSpec
from cfa_index.store import JoinedStore
from cfa_index.workflows.opening import fit_and_held, open_store
from cfa_index.workflows.probes import draw_probes, split_probes

SIZES = ((150, 90), (64, 64), (40, 50), (100, 130), (64, 70))
"""(width, height); with tiles of 64 that share 16 they are 6, 1, 1, 6 and 2 tiles."""
TILES = ("--tile", "64", "--overlap", "16", "--bank-size", "96")
GOOD = 16
BORDER = (86, 40, 96, 50)
"""Left, top, right, bottom of a defect in a 150 x 90 image; tiles begin at 48 and 86, and end at 64 and 112."""


def picture(number: int, size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return texture(number, width=size[0], height=size[1])


def spoil(
    folder: Path, name: str, number: int, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """A test image with a bright square, and its mask."""
    left, top, right, bottom = box
    pixels, mask = picture(number, size), np.zeros(size[::-1], np.uint8)
    pixels[top:bottom, left:right] = (250, 20, 20)
    mask[top:bottom, left:right] = 255
    write_image(folder / "test" / "hole" / f"{name}.png", pixels)
    write_image(folder / "ground_truth" / "hole" / f"{name}_mask.png", mask)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Built; 16 good images, of which 8 are held out, 4 good test images and 3 with a defect."""
    found = Workplace(root=tmp_path_factory.mktemp("tiled"))
    folder = found.data / "panel"
    for number in range(GOOD):
        write_image(folder / "train" / "good" / f"{number:03d}.png", picture(number, SIZES[number % 5]))
    for number in range(4):
        write_image(folder / "test" / "good" / f"{number:03d}.png", picture(1000 + number, SIZES[number]))
    spoil(folder, "border", 2000, (150, 90), BORDER)
    spoil(folder, "corner", 2001, (150, 90), (48, 26, 60, 38))  # four tiles see it
    spoil(folder, "small", 2002, (40, 50), (25, 36, 36, 48))
    outcome = cfa("build", "-c", "panel", *found.everything, *QUICK, *TILES, "--held-out", "0.5")
    assert outcome.code == 0, outcome
    return found


def load(place: Workplace) -> ModelBundle:
    return ModelBundle.load(place.models / "panel")


def store_of(place: Workplace) -> JoinedStore:
    return open_store(read_manifest(current_generation(place.models / "panel")), place.features)


def uris(store: JoinedStore, rows: list[int]) -> set[str]:
    return {store.images[row].uri for row in rows}


def test_a_row_is_a_tile_and_an_image_counts_once(place: Workplace) -> None:
    manifest, store = load(place).manifest, store_of(place)
    assert manifest.images == GOOD
    assert manifest.spec.features.tile_px == 64
    features = manifest.spec.features
    expected = [
        (f"train/good/{number:03d}.png", tile, *SIZES[number % 5])
        for number in range(GOOD)
        for tile in range(view_count(*SIZES[number % 5], features))
    ]
    assert [(one.uri, one.tile, one.width, one.height) for one in store.images] == expected
    assert len(store.images_in(store.good_rows)) == GOOD
    assert store.views_of(store.images_in(store.good_rows)) == store.good_rows


def test_the_split_is_by_image(place: Workplace) -> None:
    manifest, store = load(place).manifest, store_of(place)
    fit, held = fit_and_held(store, manifest.spec)
    assert len(uris(store, held)) == GOOD // 2
    assert not uris(store, fit) & uris(store, held)
    assert sorted([*fit, *held]) == store.good_rows
    assert sorted(manifest.held_out.uris) == sorted(uris(store, held))  # each of them once


def test_held_out_scores_are_those_of_the_whole_map(place: Workplace) -> None:
    bundle = load(place)
    folder = place.data / "panel"
    fresh = bundle.score([folder / uri for uri in bundle.manifest.held_out.uris])
    # The store is float16.
    assert bundle.manifest.held_out.scores == pytest.approx([one.score for one in fresh], rel=5e-3)


def test_memories_come_from_their_boxes_and_not_from_held_out_images(place: Workplace) -> None:
    bundle = load(place)
    held = set(bundle.manifest.held_out.uris)
    for source in bundle.sources:
        assert source.uri not in held
        width, height = SIZES[int(Path(source.uri).stem) % 5]
        left, top, right, bottom = source.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        lies_in = [
            (left, top) == (box[0] + 4 * source.column, box[1] + 4 * source.row)
            for box in tile_boxes(width, height, bundle.manifest.spec.features)
        ]
        assert any(lies_in)


def test_a_tile_is_scored_like_its_crop(place: Workplace) -> None:
    """Each view has the patch scores of the crop as an image of its own; the maps' highest is the score."""
    bundle = load(place)
    pixels = picture(7, (150, 90))
    (whole,) = bundle.score([pixels], batch_size=4)
    boxes = tile_boxes(150, 90, bundle.manifest.spec.features)
    crops = bundle.score([pixels[top:bottom, left:right] for left, top, right, bottom in boxes])
    assert whole.anomaly_map.shape == (90, 150)
    assert whole.score == whole.anomaly_map.max()
    assert [view.frame for view in whole.views] == list(frames_of(150, 90, bundle.manifest.spec.features))
    for view, crop in zip(whole.views, crops, strict=True):
        np.testing.assert_allclose(view.patch_scores, crop.patch_scores, rtol=1e-4, atol=1e-4)
        assert view.neighbor_ids.shape == (16, 16, bundle.manifest.spec.score.neighbors)
    # Where one tile alone looks, its map is the whole one's.
    np.testing.assert_allclose(
        whole.anomaly_map[:26, :48], crops[0].anomaly_map[:26, :48], rtol=1e-4, atol=1e-4
    )
    assert whole.score <= max(crop.score for crop in crops) * (1 + 1e-6)
    with pytest.raises(SpecError, match="scored whole, got 6 tiles; look at `views`"):
        _ = whole.patch_scores


def test_a_small_defect_at_a_border_is_found_where_it_is(place: Workplace) -> None:
    bundle = load(place)
    folder = place.data / "panel" / "test"
    good = bundle.score(sorted((folder / "good").iterdir()))
    bad = bundle.score([folder / "hole" / f"{name}.png" for name in ("border", "corner", "small")])
    assert min(one.score for one in bad) > 1.2 * max(one.score for one in good)
    top, left = np.unravel_index(bad[0].anomaly_map.argmax(), bad[0].anomaly_map.shape)
    assert BORDER[1] - 4 <= top < BORDER[3] + 4
    assert BORDER[0] - 4 <= left < BORDER[2] + 4


def run_query(place: Workplace, image: str, *more: object) -> Outcome:
    return cfa("query", place.data / "panel" / "test" / image, "-c", "panel", *place.model, *more)


def test_query_shows_the_worst_patches_of_all_tiles(place: Workplace, tmp_path: Path) -> None:
    outcome = run_query(place, "hole/border.png", "--json", "-", "-o", tmp_path / "panel.png")
    assert outcome.code == 0, outcome
    (result,) = outcome.document["images"]
    boxes = [tuple(patch["box"]) for patch in result["worst_patches"]]
    left, top, right, bottom = boxes[0]
    assert left < BORDER[2] + 4
    assert right > BORDER[0] - 4
    assert top < BORDER[3] + 4
    assert bottom > BORDER[1] - 4
    for number, one in enumerate(boxes):
        for other in boxes[:number]:  # no place twice, seen by two tiles
            apart = max(abs(one[0] - other[0]), abs(one[1] - other[1]))
            assert apart >= 6
    assert all({"tile", "row", "column"} <= set(patch) for patch in result["worst_patches"])
    assert list(tmp_path.glob("*.png"))


def test_evaluate_measures_images_and_pixels(place: Workplace, tmp_path: Path) -> None:
    outcome = cfa(
        *("evaluate", "-c", "panel", *place.model, "--data-root", place.data),
        *("--json", "-", "--figures", tmp_path / "figures", "--figure-count", "1"),
    )
    assert outcome.code == 0, outcome
    document = outcome.document
    assert len(document["images"]) == 7
    assert document["image_auroc"] == 1
    assert document["pixel_auroc"] > 0.95
    assert document["aupro"] > 0.8
    scores = load(place).score(sorted((place.data / "panel" / "test" / "hole").iterdir()))
    found = [row["score"] for row in document["images"] if row["defect"] == "hole"]
    assert found == pytest.approx([one.score for one in scores], rel=1e-5)
    assert (tmp_path / "figures" / "panel" / "features.png").exists()


def test_models_with_and_without_tiles_are_fused(place: Workplace, tmp_path: Path) -> None:
    other = tmp_path / "models"
    built = cfa(
        *("build", "-c", "panel", *QUICK, "--data-root", place.data, "--models-dir", other),
        *("--features-dir", tmp_path / "features"),
    )
    assert built.code == 0, built
    outcome = cfa(
        *("evaluate", "-c", "panel", *place.model, "--data-root", place.data, "--json", "-"),
        *("--fuse", other),
    )
    assert outcome.code == 0, outcome
    assert len(outcome.document["models"]) == 2
    assert len(outcome.document["images"]) == 7


def test_training_goes_on_from_tiles(place: Workplace, tmp_path: Path) -> None:
    own = copied(place, tmp_path)
    outcome = cfa(
        "train", "-c", "panel", *own.stores, "--epochs", "1", "--select", "synthetic", "--json", "-"
    )
    assert outcome.code == 0, outcome
    manifest = load(own).manifest
    assert manifest.action == "train"
    assert len(manifest.held_out.uris) == 4  # half of the held-out images, all their tiles, have chosen
    assert len(set(manifest.held_out.uris)) == 4
    fit, held = fit_and_held(store_of(own), manifest.spec)
    assert set(manifest.held_out.uris) < uris(store_of(own), held)
    assert not set(manifest.held_out.uris) & uris(store_of(own), fit)


def test_synthetic_defects_are_drawn_on_one_tile_an_image(place: Workplace) -> None:
    bundle, store = load(place), store_of(place)
    _, held = fit_and_held(store, bundle.manifest.spec)
    images = store.images_in(held)
    chosen, left = split_probes(images, seed=0)
    assert sorted([*chosen, *left]) == images
    probes = draw_probes(store, chosen, bundle.backbone, seed=0)
    assert len(probes.labels) == 5 * len(chosen)
    for number, image in enumerate(chosen):
        stored = store.images[image]
        frames = frames_of(stored.width, stored.height, bundle.manifest.spec.features)
        tile = frames.index(probes.frames[number])
        own = store.read([image + tile])
        for level, mine in zip(probes.levels, own, strict=True):
            torch.testing.assert_close(level[number], mine[0], rtol=1e-2, atol=1e-2)


def test_images_come_and_go_with_all_their_tiles(place: Workplace, tmp_path: Path) -> None:
    own = copied(place, tmp_path)
    before = load(own)
    for number in (50, 51, 52, 53):
        write_image(tmp_path / "new" / f"{number}.png", picture(number, SIZES[(number + 1) % 5]))
    added = cfa("bank", "add", "-c", "panel", *own.stores, tmp_path / "new", "--json", "-")
    assert added.code == 0, added
    grown = load(own)
    assert grown.manifest.images == GOOD + 4
    assert len(grown.manifest.held_out.uris) == len(set(grown.manifest.held_out.uris)) == 10
    new = [str(tmp_path / "new" / f"{number}.png") for number in (50, 51, 52, 53)]
    assert {source.uri for source in grown.sources} - {source.uri for source in before.sources} <= set(new)
    assert cfa("bank", "verify", "-c", "panel", *own.stores).code == 0
    names = [word for uri in new for word in ("--image", uri)]
    removed = cfa("bank", "remove", "-c", "panel", *own.stores, *names)
    assert removed.code == 0, removed
    after = load(own)
    assert after.manifest.images == GOOD
    assert np.array_equal(after.bank.vectors, before.bank.vectors)
    assert after.manifest.held_out == before.manifest.held_out
    assert after.manifest.added == ()
    # One of the build's, by its file name alone: a bank of means is made again without it.
    fit, _ = fit_and_held(store_of(own), after.manifest.spec)
    name = Path(store_of(own).images[fit[-1]].uri).name
    assert cfa("bank", "remove", "-c", "panel", *own.stores, "--image", name, "--rebuild").code == 0
    assert load(own).manifest.images == GOOD - 1
    assert not [source for source in load(own).sources if source.uri.endswith(name)]


def test_a_second_build_computes_nothing_and_an_interrupted_one_goes_on(
    place: Workplace, tmp_path: Path
) -> None:
    own = copied(place, tmp_path)
    (path,) = (own.features / "panel").glob("*.zarr")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    again = ("build", "-c", "panel", *own.everything, *QUICK, *TILES, "--held-out", "0.5")
    # The copy's images lie elsewhere, and so would its store: the build of the first place is repeated.
    first = (*again[:3], "--data-root", place.data, *own.stores, *again[3 + len(own.everything) :])
    (path / "store.json").unlink()
    (path / "records" / "00001.json").unlink()
    shutil.rmtree(path / "level4" / "c" / "1")
    outcome = cfa(*first, "--json", "-")
    assert outcome.code == 0, outcome
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert after == before


def test_broken_images_are_left_out_whole(place: Workplace, tmp_path: Path) -> None:
    own = Workplace(root=tmp_path)
    shutil.copytree(place.data, own.data)
    folder = own.data / "panel" / "train" / "good"
    cut = folder / "003.png"  # its header is whole: six tiles were counted
    cut.write_bytes(cut.read_bytes()[:2000])
    (folder / "004.png").write_bytes(b"")
    outcome = cfa("build", "-c", "panel", *own.everything, *QUICK, *TILES, "--json", "-")
    assert outcome.code == 3, outcome
    assert outcome.document["images"] == GOOD - 2
    assert outcome.document["images_rejected"] == 2
    assert outcome.err.count("left out") == 2
    store = store_of(own)
    assert not uris(store, store.good_rows) & {"train/good/003.png", "train/good/004.png"}


def test_a_study_measures_images_by_their_whole_maps(place: Workplace, tmp_path: Path) -> None:
    outcome = cfa(
        *("study", "-c", "panel", "--data-root", place.data, "--features-dir", tmp_path / "features"),
        *("-o", tmp_path / "study", "--method", "random", "--bank-size", "64", "--gamma-d", "1"),
        *("--index", "flat", "--repeat", "1", "--queries", "64", "--held-out", "0.5", "--json", "-"),
        *(word for word in QUICK if word not in ("--bank-size", "32")),
        *TILES[:4],
    )
    assert outcome.code == 0, outcome
    (row,) = outcome.document["rows"]
    assert row["error"] is None
    assert row["image_auroc"] == 1
    assert row["pixel_auroc"] > 0.9
    assert "--tile 64 --overlap 16" in row["command"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tile", "16"), "tile_px to be 0 for no tiles, or from 32 to 4096, got 16"),
        (("--overlap", "8"), "overlap_px to be 0 without tiles, got 8; give --tile too"),
        (("--tile", "64", "--overlap", "64"), "below tile_px = 64, got 64; give about a seventh"),
        (("--tile", "64", "--geometry", "crop"), "geometry with tiles to be 'whole'"),
        (("--tile", "64", "--method", "mean"), "a tile has no place of its own in the product"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    place: Workplace, options: tuple[str, ...], said: str
) -> None:
    outcome = cfa("build", "-c", "panel", *place.everything, *QUICK, *options)
    assert said in outcome.error_line


def test_a_tile_shares_a_seventh_unless_told() -> None:
    assert tile_settings(224, None) == {"tile_px": 224, "overlap_px": 32}
    assert tile_settings(224, 0) == {"tile_px": 224, "overlap_px": 0}
    assert tile_settings(None, None) == {"tile_px": None, "overlap_px": None}


def test_an_untiled_model_says_nothing_of_tiles() -> None:
    plain = ModelSpec().to_dict()
    assert "tile_px" not in plain["features"]
    assert ModelSpec.from_dict(plain) == ModelSpec()
    tiled = ModelSpec(features=FeatureSpec(tile_px=224, overlap_px=32))
    assert ModelSpec.from_dict(tiled.to_dict()) == tiled
    with pytest.raises(SpecError, match="neither 'ema' nor 'mean'"):
        replace(tiled, bank=BankSpec(method="ema", size=784))


def test_a_folder_is_scored_by_tiles(place: Workplace, tmp_path: Path) -> None:
    """As the library scores its images one by one; their maps are arrays of their own."""
    folder = place.data / "panel" / "test"
    target = tmp_path / "out"
    outcome = cfa(
        *("score", folder, "-c", "panel", *place.model, "-o", target, "--maps", "--heatmaps"),
        *("--shard-images", "4", "--batch-size", "3", "--json", "-"),
    )
    assert outcome.code == 0, outcome
    rows = [row for file in sorted((target / "parts").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert len(rows) == len(list((target / "heatmaps").iterdir())) == 7
    bundle = ModelBundle.load(place.models / "panel")
    for row in rows:
        verdict = bundle.score([folder / row["uri"]])[0]
        assert row["score"] == pytest.approx(verdict.score, rel=1e-5)
        assert (row["width"], row["height"]) == (verdict.frame.source_width, verdict.frame.source_height)
        kept = np.asarray(zarr.open_array(target / "maps" / f"{row['image_id']:08d}", mode="r")[:])
        np.testing.assert_allclose(kept, verdict.anomaly_map, rtol=1e-4, atol=1e-6)
    without = cfa("score", folder, "-c", "panel", *place.model, "-o", tmp_path / "plain", "--json", "-")
    assert without.code == 0, without
    plain = pq.read_table(tmp_path / "plain" / "parts" / "part-00000000.parquet").to_pylist()
    assert [one["score"] for one in plain] == pytest.approx([row["score"] for row in rows], rel=1e-5)
