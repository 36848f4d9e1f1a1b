from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cfa_index.backbones import load_backbone
from cfa_index.bundle import ModelBundle, category_lock
from cfa_index.errors import BankError, BundleError, DatasetError, SpecError
from cfa_index.specs import BankSpec, FeatureSpec, ModelSpec, ScoreSpec, TrainSpec
from cfa_index.workflows.build import BuildReport, GoodImages, build
from cfa_index.workflows.query import query
from cfa_index.workflows.train import train

CPU = torch.device("cpu")
FEATURES = FeatureSpec(backbone="resnet18", strides=(8, 16), size_px=64)


def draw(folder: Path, count: int, size: tuple[int, int] = (80, 80)) -> list[Path]:
    folder.mkdir(parents=True)
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(90, 220, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        file = folder / f"{number}.png"
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file)
        files.append(file)
    return files


def make(tmp_path: Path, files: list[Path], **changes: object) -> BuildReport:
    spec = replace(ModelSpec(features=FEATURES, bank=BankSpec(size=24, iterations=3)), **changes)  # type: ignore[arg-type]
    return build(
        GoodImages(category="plate", source=tmp_path / "good", images=files),
        spec,
        backbone=load_backbone("resnet18", (8, 16), size_px=64, weights="random"),
        models_dir=tmp_path / "models",
        features_dir=tmp_path / "features",
        device=CPU,
    )


def test_a_letterbox_s_padding_is_in_no_memory_and_no_training(tmp_path: Path) -> None:
    files = draw(tmp_path / "good", 6, size=(160, 40))  # rows 24 .. 40 of 64: patch rows 3 and 4 of 8
    report = make(tmp_path, files, features=replace(FEATURES, geometry="letterbox"))
    bundle = ModelBundle.load(report.path)
    assert {source.row for source in bundle.sources} == {3, 4}
    assert all(0 <= source.box[1] < source.box[3] <= 40 for source in bundle.sources)
    trained = train(tmp_path / "models", "plate", TrainSpec(epochs=1), features_dir=tmp_path / "features")
    assert trained.log[0].neighbor_distance > 0


@pytest.mark.parametrize("geometry", ["whole", "crop", "letterbox"])
def test_sources_lie_in_their_images(tmp_path: Path, geometry: str) -> None:
    files = draw(tmp_path / "good", 5, size=(120, 88))
    report = make(tmp_path, files, features=replace(FEATURES, geometry=geometry))  # type: ignore[arg-type]
    for source in ModelBundle.load(report.path).sources:
        left, top, right, bottom = source.box
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 88


def test_one_image_is_enough_and_is_not_held_out(tmp_path: Path) -> None:
    report = make(tmp_path, draw(tmp_path / "good", 1))
    assert (report.memories, report.manifest.threshold) == (24, None)
    assert ModelBundle.load(report.path).score([tmp_path / "good" / "0.png"])[0].is_anomalous is None


def test_a_bank_too_large_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="at most 320 memories"):
        make(tmp_path, draw(tmp_path / "good", 5), bank=BankSpec(size=321), held_out=0.0)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("bank", "match"),
    [
        (BankSpec(method="mean", size=None, share=0.5), r"at most h\*w = 64, got 160"),
        (BankSpec(method="ema", size=None, share=0.5), r"at most h\*w = 64, got 160"),
        (BankSpec(method="coreset", size=None, share=0.005), "at most the bank's 2 memories, got 3"),
    ],
)
def test_a_share_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, bank: BankSpec, match: str
) -> None:
    with pytest.raises(SpecError, match=match):
        make(tmp_path, draw(tmp_path / "good", 5), bank=bank, held_out=0.0)
    assert not (tmp_path / "features").exists()


def test_a_full_bank_too_small_for_its_neighbours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="at most the bank's 64 memories, got 65"):
        make(
            tmp_path,
            draw(tmp_path / "good", 1),
            bank=BankSpec(method="full"),
            score=ScoreSpec(neighbors=65),
        )


def test_a_letterbox_leaves_a_share_too_few_patches(tmp_path: Path) -> None:
    """2 of 8 rows of patches show the image: 4 memories of 256 become 1 of 64."""
    with pytest.raises(SpecError, match="at most the bank's 1 memories, got 3"):
        make(
            tmp_path,
            draw(tmp_path / "good", 4, size=(160, 40)),
            features=replace(FEATURES, geometry="letterbox"),
            bank=BankSpec(method="random", size=None, share=1 / 64),
            held_out=0.0,
        )
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("method", ["coreset", "random", "full"])
def test_a_bank_of_patches_trains_scores_and_explains(tmp_path: Path, method: str) -> None:
    files = draw(tmp_path / "good", 5)
    bank = BankSpec(method=method, size=None, share=0.1)  # type: ignore[arg-type]
    report = make(tmp_path, files, bank=bank)
    assert report.memories == (4 * 64 if method == "full" else 26)
    trained = train(tmp_path / "models", "plate", TrainSpec(epochs=1), features_dir=tmp_path / "features")
    assert trained.manifest.spec.bank == bank
    bundle = ModelBundle.load(trained.path)
    assert len(bundle.sources) == report.memories
    (verdict,) = bundle.score([files[0]])
    assert np.isfinite(verdict.score)
    result = query(bundle, files[0], patches=2)
    assert all(match.exemplar for patch in result.worst for match in patch.matches)


def test_an_image_in_a_full_bank_is_at_no_distance(tmp_path: Path) -> None:
    files = draw(tmp_path / "good", 3)
    report = make(tmp_path, files, bank=BankSpec(method="full"), held_out=0.0)
    score = ModelBundle.load(report.path).score([files[1]])[0].score
    assert score == pytest.approx(0, abs=0.02)  # what float16 in the store leaves


def test_no_images_at_all_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    with pytest.raises((DatasetError, BankError), match="expected"):
        make(tmp_path, [])


def test_training_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    make(tmp_path, draw(tmp_path / "good", 5))
    places = {"models_dir": tmp_path / "models", "features_dir": tmp_path / "features"}
    with pytest.raises(SpecError, match="at most the bank's 24 memories, got 20"):
        train(
            places["models_dir"], "plate", TrainSpec(attract=20, repel=5), features_dir=places["features_dir"]
        )
    with pytest.raises(SpecError, match="at least one full batch of 8"):
        train(
            places["models_dir"],
            "plate",
            TrainSpec(batch_size=8, drop_last=True),
            features_dir=places["features_dir"],
        )


def test_the_order_s_seed_is_in_the_manifest(tmp_path: Path) -> None:
    make(tmp_path, draw(tmp_path / "good", 5))
    report = train(
        tmp_path / "models", "plate", TrainSpec(epochs=1), features_dir=tmp_path / "features", seed=7
    )
    assert report.manifest.spec.train.seed == 7
    assert report.manifest.spec.seed == 0


def test_two_writers_of_a_model_are_refused_and_leftovers_go(tmp_path: Path) -> None:
    files = draw(tmp_path / "good", 5)
    make(tmp_path, files)
    leftover = tmp_path / "models" / "plate" / "generations" / ".0002.1.tmp"
    leftover.mkdir()
    with category_lock(tmp_path / "models" / "plate"), pytest.raises(BundleError, match="only writer"):
        make(tmp_path, files)
    assert not leftover.exists()
    assert make(tmp_path, files).manifest.generation == "0002"
