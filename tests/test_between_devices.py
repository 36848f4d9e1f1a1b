"""A model made on a card scores on a CPU and the other way round; the whole way through the command line.

The fake card computes with the CPU's own kernels, so it agrees to float32's rounding. A true card sums in another
order and has other algorithms for convolutions; until one has told, a hundredth is allowed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import batch
import made_up
import numpy as np
import pytest
import torch
from fake_card import fake_card
from living import bank, copied
from made_up import Workplace, cfa

from cfa_index import CardSpec, ImageScore, ModelBundle, SpreadBank, current_generation
from cfa_index.bank import make_index
from cfa_index.bundle import index_contents, write_generation
from cfa_index.specs import INDEX_NAMES, IndexSpec, Spread

NAMES = [name for name in INDEX_NAMES if name != "auto"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card to make models on, or to score on.

    Attributes:
        opened: `--device cuda` is this card in the body.
        rtol: how far a score there may be from the CPU's.
    """

    opened: Callable[[], AbstractContextManager[Any]]
    rtol: float


@pytest.fixture(scope="module", params=["fake card", pytest.param("cuda", marks=pytest.mark.gpu)])
def card(request: pytest.FixtureRequest) -> Card:
    return (
        Card(opened=fake_card, rtol=1e-4)
        if request.param == "fake card"
        else Card(opened=nullcontext, rtol=1e-2)
    )


@pytest.fixture(scope="module")
def place(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A category that was built and trained on a card."""
    place = made_up.workplace(tmp_path_factory.mktemp("made-on-a-card"), train=12, test=2)
    with card.opened():
        built = place.build("--device", "cuda")
        assert built.code == 0, built
        trained = cfa("train", "-c", "weave", *place.stores, "--epochs", "2", "--device", "cuda")
        assert trained.code == 0, trained
    return place


def images_of(place: Workplace) -> list[Path]:
    return sorted((place.data / "weave" / "test").rglob("*.png"))


def assert_same(got: list[ImageScore], expected: list[ImageScore], rtol: float) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.score == pytest.approx(other.score, rel=rtol)
        far = rtol * float(other.anomaly_map.max())
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=0, atol=far)
        np.testing.assert_allclose(
            one.patch_scores, other.patch_scores, rtol=0, atol=rtol * other.patch_scores.max()
        )


def test_a_model_made_on_a_card_scores_on_a_cpu(place: Workplace, card: Card) -> None:
    images = images_of(place)
    with card.opened():
        on_card = ModelBundle.load(place.models / "weave", device="cuda").score(images)
    on_cpu = ModelBundle.load(place.models / "weave").score(images)
    assert_same(on_card, on_cpu, card.rtol)
    assert [one.is_anomalous for one in on_card] == [one.is_anomalous for one in on_cpu]


def test_its_files_are_the_host_s(place: Workplace) -> None:
    """Nothing in a model says where it was made: arrays of float32, safetensors, and a CPU's index."""
    bundle = ModelBundle.load(place.models / "weave")
    assert bundle.manifest.action == "train"
    assert bundle.bank.vectors.dtype == np.float32
    assert {tensor.device.type for tensor in bundle.descriptor.state_dict().values()} == {"cpu"}
    assert all("cuda" not in path.read_text(errors="ignore") for path in bundle.path.glob("*.json"))


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a generation, made on the CPU, with each kind of index over the same 320 memories."""
    place = made_up.workplace(tmp_path_factory.mktemp("made-on-a-cpu"), train=12, test=2)
    assert place.build("--bank-size", "320", "--device", "cpu").code == 0
    base = ModelBundle.load(place.models / "weave")
    vectors = base.bank.vectors
    noise = np.random.default_rng(0).normal(0, vectors.std() / 4, size=vectors.shape)
    folders = dict.fromkeys(NAMES, base.path)
    for name in NAMES:
        spec = IndexSpec(factory=name, min_recall=0.99)
        queries = (vectors + noise).astype(np.float32)
        made = make_index(vectors, spec, queries, k=3, patches_per_image=256, seed=0)
        if made.index is None:  # Flat, or what this machine has not
            continue
        files = {file: base.path / file for file in base.manifest.files}
        manifest = replace(base.manifest, index=made.state)
        path, _ = write_generation(place.models / "weave", manifest, {**files, **index_contents(made.index)})
        folders[name] = path
    return folders


@pytest.mark.parametrize("name", NAMES)
def test_a_model_made_on_a_cpu_scores_on_a_card(name: str, indexed: dict[str, Path], card: Card) -> None:
    """Under every kind of index, whether FAISS has that kind on a card or Flat answers there in its place."""
    images = [made_up.texture(number) for number in (1000, 2000)]
    images[1][20:40, 20:40] = (250, 20, 20)
    on_cpu = ModelBundle.load(indexed[name]).score(images)
    with card.opened():
        bundle = ModelBundle.load(indexed[name], device="cuda")
        assert bundle.bank.device.type != "cpu"
        on_card = bundle.score(images)
        state = bundle.bank.index.state if bundle.bank.index else None
    assert state == bundle.manifest.index
    if state is None:
        assert_same(on_card, on_cpu, card.rtol)
        return
    for got, expected in zip(on_card, on_cpu, strict=True):
        # A card may look into more cells than the CPU, or at everything: what it finds is as near, or nearer.
        farthest = (1 + card.rtol) * expected.neighbor_distances
        assert (got.neighbor_distances <= farthest).all(axis=2).mean() > 0.98
        assert got.score == pytest.approx(expected.score, rel=0.05)


def test_the_commands_say_on_a_card_what_they_say_on_a_cpu(
    place: Workplace, card: Card, tmp_path: Path
) -> None:
    """`place` was built and trained on the card; evaluate and score, from this one model, on both."""
    measures, scores = {}, {}
    for device in ("cpu", "cuda"):
        with card.opened() if device == "cuda" else nullcontext():
            where = ("-c", "weave", *place.model, "--device", device)
            evaluated = cfa("evaluate", *where, "--data-root", place.data, "--json", "-")
            assert evaluated.code == 0, evaluated
            folder = place.data / "weave" / "test"
            scored = cfa("score", folder, *where, "-o", tmp_path / device, "--workers", "0")
            assert scored.code == 0, scored
        measures[device] = evaluated.document
        scores[device] = {row["uri"]: row["score"] for row in batch.rows(tmp_path / device)}
    for name in ("image_auroc", "pixel_auroc", "aupro", "image_f1", "image_f1_threshold", "threshold"):
        assert measures["cuda"][name] == pytest.approx(measures["cpu"][name], rel=card.rtol), name
    assert scores["cuda"] == pytest.approx(scores["cpu"], rel=card.rtol)


def test_images_are_added_on_a_card_as_on_a_cpu(place: Workplace, card: Card, tmp_path: Path) -> None:
    made_up.write_good(tmp_path / "new", 5, first=500)
    grown = []
    for device in ("cpu", "cuda"):
        copy = copied(place, tmp_path / device)
        with card.opened() if device == "cuda" else nullcontext():
            added = bank("add", copy, tmp_path / "new", "--device", device)
            assert added.code == 0, added
        grown.append(ModelBundle.load(copy.models / "weave").bank.vectors)
    assert len(grown[0]) > len(ModelBundle.load(place.models / "weave").bank)
    np.testing.assert_allclose(grown[1], grown[0], rtol=card.rtol, atol=card.rtol)


@pytest.fixture
def cards(card: Card) -> Card:
    """Two of them."""
    if card.opened is nullcontext and torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    return card


@pytest.mark.parametrize("spread", ["replicas", "shards"])
def test_a_model_over_two_cards_scores_as_on_one_cpu(place: Workplace, cards: Card, spread: Spread) -> None:
    images = images_of(place)
    with cards.opened():
        bundle = ModelBundle.load(place.models / "weave", device="cuda:0,1", card=CardSpec(spread=spread))
        assert isinstance(bundle.bank, SpreadBank)
        spread_over = bundle.score(images)
    assert_same(spread_over, ModelBundle.load(place.models / "weave").score(images), cards.rtol)


def test_training_over_two_cards_takes_replicas_and_says_so(
    place: Workplace, cards: Card, tmp_path: Path
) -> None:
    logs = {}
    for device in ("cuda:0", "cuda:0,1"):
        copy = made_up.copied(place, tmp_path / device)
        train = ("train", "-c", "weave", *copy.stores, "--epochs", "1", "--device", device)
        with cards.opened():
            if "," in device:
                refused = cfa(*train, "--card-spread", "shards").error_line
                assert "training gathers from, got a bank in shards on" in refused
                assert "--card-spread replicas" in refused
            assert cfa(*train).code == 0
        generation = current_generation(copy.models / "weave")
        rows = csv.DictReader((generation / "train_log.csv").read_text().splitlines())
        logs[device] = [float(row[name]) for row in rows for name in ("attraction", "radius")]
    assert logs["cuda:0,1"] == pytest.approx(logs["cuda:0"], rel=cards.rtol)
