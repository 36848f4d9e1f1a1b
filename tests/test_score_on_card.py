"""Scoring on a card: the CPU's rows, the host ahead of the card, and nothing crosses but what is asked for.

The bodies are written once. On the fake card they run everywhere; on a real one wherever torch sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fake_card import FakeCard, fake_card
from made_up import Workplace
from torch import Tensor

from cfa_index.backbones import Backbone, load_backbone
from cfa_index.bundle import ModelBundle
from cfa_index.errors import BankError
from cfa_index.images import Views, frames_of
from cfa_index.images.views import read_views
from cfa_index.places import LocalPlace
from cfa_index.scorer import Scorer
from cfa_index.specs import FeatureSpec
from cfa_index.transfers import Pending
from cfa_index.workflows.ensemble import score_images as fused_images
from cfa_index.workflows.extract import extract, iterate_pyramids
from cfa_index.workflows.score import score_folder
from cfa_index.workflows.score_rows import score_images

SIDE = made_up.SIDE_PX
CLOSE = 1e-4
"""Relative; what another order of float32's sums makes of a score."""


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request: pytest.FixtureRequest) -> Iterator[FakeCard | None]:
    """A card that `--device cuda` names; None for a real one."""
    if request.param == "cuda":
        yield None
        return
    with fake_card() as fake:
        yield fake


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return made_up.built_workplace(tmp_path_factory.mktemp("on_card"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A model whose images have tiles, some of them with padding."""
    found = Workplace(root=tmp_path_factory.mktemp("tiles"))
    for number, (width, height) in enumerate([(100, 70), (64, 64), (40, 50)] * 4):
        pixels = made_up.texture(number, width=width, height=height)
        made_up.write_image(found.data / "weave" / "train" / "good" / f"{number:03d}.png", pixels)
    outcome = found.build("--tile", "64", "--overlap", "16")
    assert outcome.code == 0, outcome
    return found


def scored(bundle: ModelBundle, folder: Path, target: Path, **options: Any) -> list[dict[str, Any]]:
    score_folder(bundle, folder, target, batch_size=4, shard_images=6, **options)
    rows: list[dict[str, Any]] = pq.read_table(target / "parts").sort_by("image_id").to_pylist()
    return rows


def assert_same(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for row, other in zip(rows, expected, strict=True):
        score = other["score"] and pytest.approx(other["score"], rel=CLOSE)
        assert row == {**other, "score": score}


def on(device: str, place: Workplace) -> ModelBundle:
    return ModelBundle.load(place.models / "weave", device=device)


@pytest.mark.parametrize("maps", [False, True])
def test_a_folder_has_the_cpus_rows_and_one_copy_a_batch(
    card: FakeCard | None, place: Workplace, tmp_path: Path, maps: bool
) -> None:
    folder = made_up.write_good(tmp_path / "in", 9)
    made_up.write_image(folder / "100.png", made_up.texture(5000) // 2)
    (folder / "003.png").write_bytes(b"")
    expected = scored(on("cpu", place), folder, tmp_path / "cpu", maps=maps)
    bundle = on("cuda", place)
    if card is not None:
        for counted in (card.to_host, card.to_card, card.waits):
            counted.clear()
    assert_same(scored(bundle, folder, tmp_path / "card", maps=maps), expected)
    if card is not None:
        assert card.to_host == [(4, SIDE, SIDE) if maps else (4,)] * 3  # shards of 6 and 4
        assert card.to_card == [(4, 3, SIDE, SIDE)] * 3
        assert not card.waits


def test_tiles_and_padding_are_scored_as_on_the_cpu(
    card: FakeCard | None, cells: Workplace, tmp_path: Path
) -> None:
    folder = cells.data / "weave" / "train" / "good"
    expected = scored(on("cpu", cells), folder, tmp_path / "cpu")
    assert_same(scored(on("cuda", cells), folder, tmp_path / "card"), expected)
    assert card is None or not card.waits


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_next_batch_is_queued_before_a_cards_results_are_read(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Across shards, too: these are of 6 images, batches of 4."""
    log: list[str] = []
    score, result = Scorer.score_pixels, Pending.result

    def queue(*arguments: Any, **options: Any) -> Any:
        log.append("queue")
        return score(*arguments, **options)

    def read(pending: Pending) -> list[Tensor]:
        log.append("read")
        return result(pending)

    monkeypatch.setattr(Scorer, "score_pixels", queue)
    monkeypatch.setattr(Pending, "result", read)
    folder = made_up.write_good(tmp_path / "in", 8)
    with fake_card():
        scored(on(device, place), folder, tmp_path / "out")
    one_behind = ["queue", "queue", "read", "queue", "read", "read"]
    assert log == (one_behind if device == "cuda" else ["queue", "read"] * 3)


def test_a_verdict_is_the_cpus(card: FakeCard | None, place: Workplace) -> None:
    images = sorted((place.data / "weave" / "test").glob("*/*.png"))
    expected = on("cpu", place).score(images, batch_size=3)
    bundle = on("cuda", place)
    crossed = 0 if card is None else len(card.to_host)
    for got, other in zip(bundle.score(images, batch_size=3), expected, strict=True):
        np.testing.assert_allclose(got.anomaly_map, other.anomaly_map, rtol=CLOSE)
        np.testing.assert_allclose(got.neighbor_distances, other.neighbor_distances, rtol=CLOSE)
        assert (got.neighbor_ids == other.neighbor_ids).mean() > 0.99  # but for ties
    if card is not None:
        assert (
            len(card.to_host) - crossed == 4 * 3
        )  # maps, patches' scores, neighbours and distances; 3 batches
        assert not card.waits


def test_an_evaluation_scores_as_on_the_cpu(card: FakeCard | None, place: Workplace, tmp_path: Path) -> None:
    images = sorted((place.data / "weave" / "test").glob("*/*.png"))
    images.insert(2, tmp_path / "missing.png")
    bundles = [on(name, place) for name in ("cpu", "cuda")]
    cpu, gpu = (
        [
            None if one.error else [state.score for state in one.states]
            for one in fused_images(
                [bundle], images, states=[[bundle.scorer, bundle.scorer]], batch_size=3, threads=1
            )
        ]
        for bundle in bundles
    )
    assert cpu[2] is gpu[2] is None
    np.testing.assert_allclose([x for x in gpu if x], [x for x in cpu if x], rtol=CLOSE)
    assert card is None or not card.waits


def spoil(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """One feature of every batch's second image is no number."""
    real = Backbone.pyramid

    def spoiled(self: Backbone, pixels: Tensor) -> list[Tensor]:
        levels = real(self, pixels)
        levels[0][1, 5, 3, 3] = value
        return levels

    monkeypatch.setattr(Backbone, "pyramid", spoiled)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_feature_that_is_no_number_is_its_images_error_on_every_device(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, value: float
) -> None:
    folder = made_up.write_good(tmp_path / "in", 4)
    expected = scored(on("cpu", place), folder, tmp_path / "whole")
    spoil(monkeypatch, value)
    with fake_card():
        bundle = on(device, place)
        rows = scored(bundle, folder, tmp_path / "out")
        with pytest.raises(BankError, match="finite queries"):
            bundle.score(sorted(folder.glob("*.png")))
    assert "finite score" in rows[1]["error"]
    assert rows[1]["score"] is None
    assert_same([rows[0], *rows[2:]], [expected[0], *expected[2:]])


def test_a_store_holds_the_cpus_features(card: FakeCard | None, tmp_path: Path) -> None:
    features = FeatureSpec(backbone="resnet18", strides=(4, 8), size_px=SIDE)
    folder = made_up.write_good(tmp_path / "in", 19)
    (folder / "004.png").write_bytes(b"")
    stores = []
    for device in (torch.device("cpu"), torch.device("cuda" if card is None else "meta", 0)):
        backbone = load_backbone("resnet18", (4, 8), size_px=SIDE, weights="random").to(device)
        stores.append(
            extract(
                sorted(folder.iterdir()),
                source=folder,
                backbone=backbone,
                features=features,
                path=tmp_path / f"{device.type}.zarr",
                device=device,
                threads=1,
            )
        )
    cpu, gpu = (next(iterate_pyramids(store, store.good_rows, 18))[1] for store in stores)
    for got, expected in zip(gpu, cpu, strict=True):
        torch.testing.assert_close(got.float(), expected.float(), rtol=2e-3, atol=1e-3)
    if card is not None:
        # A level a batch, in half precision: 16 rows of which one is broken are 8 and 7, and 3 more.
        assert card.to_host == [(n, c, s, s) for n in (8, 7, 3) for c, s in ((64, 16), (128, 8))]
        assert not card.waits


def test_pixels_that_are_on_the_card_stay_there(place: Workplace) -> None:
    with fake_card() as card:
        scorer = on("cuda", place).scorer
        pixels = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8).to("meta:0")
        card.to_card.clear()
        with card.refusing():
            scorer.score_pixels(pixels, frames_of(SIDE, SIDE, FeatureSpec(size_px=SIDE)) * 2)
        assert not card.to_card


def test_reads_are_taken_as_they_are_needed(place: Workplace, tmp_path: Path) -> None:
    """On a card a batch more than on the CPU."""
    folder = made_up.write_good(tmp_path / "in", 1)
    features = on("cpu", place).manifest.spec.features
    views = read_views(LocalPlace(folder), b"000.png", features)
    assert isinstance(views, Views)
    taken: list[int] = []

    def reads() -> Iterator[Views]:
        for number in range(12):
            taken.append(number)
            yield views

    for device, ahead in (("cpu", 4), ("cuda", 8)):
        taken.clear()
        with fake_card():
            scorer = on(device, place).scorer
            next(score_images(scorer, reads(), features=features, batch_size=4, keep_maps=False))
        assert len(taken) == ahead
