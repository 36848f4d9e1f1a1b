"""Evaluation by defect type, of fused models and by the published protocol, against plain arithmetic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from made_up import QUICK, SIDE_PX, Workplace, cfa
from sklearn.metrics import average_precision_score, roc_auc_score

from cfa_index import (
    MEASURES,
    Backbone,
    Evaluation,
    ModelBundle,
    PublishedEvaluation,
    Scorer,
    TestImage,
    evaluate,
    evaluate_published,
    mean_over_categories,
    open_category,
    to_source,
)
from cfa_index.errors import BundleError, SpecError
from cfa_index.images import read_mask

EPOCHS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A category with two defect types; its model kept 3 epochs, and another looks at the crop."""
    place = made_up.workplace(tmp_path_factory.mktemp("place"), train=16, test=3)
    made_up.write_scratches(place.data, 3)
    assert place.build().code == 0
    train = ("train", "-c", "weave", *place.stores, "--epochs", str(EPOCHS), "--learning-rate", "0.01")
    assert cfa(*train, "--keep-epochs").code == 0
    crop = ("--models-dir", place.root / "crop", "--features-dir", place.features)
    built = cfa("build", "-c", "weave", "--data-root", place.data, *crop, *QUICK, "--geometry", "crop")
    assert built.code == 0, built
    return place


@pytest.fixture(scope="module")
def whole(place: Workplace) -> ModelBundle:
    return ModelBundle.load(place.models / "weave")


@pytest.fixture(scope="module")
def crop(place: Workplace) -> ModelBundle:
    return ModelBundle.load(place.root / "crop" / "weave")


@pytest.fixture(scope="module")
def images(place: Workplace) -> list[TestImage]:
    return open_category(place.data, "weave").test()


def source_map(bundle: ModelBundle, path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    verdict = bundle.score([path])[0]
    frame = verdict.frame
    return to_source(
        verdict.anomaly_map,
        width=frame.source_width,
        height=frame.source_height,
        scale_x=frame.scale_x,
        scale_y=frame.scale_y,
        offset_x=frame.offset_x,
        offset_y=frame.offset_y,
    )


def values(evaluation: Evaluation) -> dict[str, float | None]:
    return evaluation.whole.values()


def test_each_defect_type_is_measured_against_all_good_images(
    whole: ModelBundle, images: list[TestImage]
) -> None:
    found = evaluate(whole, images, batch_size=4)
    scores = np.array([verdict.score for verdict in whole.score([image.path for image in images])])
    kinds = np.array([image.defect for image in images])
    assert list(found.by_defect) == ["hole", "scratch"]
    for name, metrics in [("", found.whole), *found.by_defect.items()]:
        shown = np.ones(len(kinds), dtype=bool) if not name else (kinds == "good") | (kinds == name)
        labels = kinds[shown] != "good"
        pixels = [
            (source_map(whole, image.path), read_mask(image.mask, SIDE_PX, SIDE_PX) if image.mask else None)
            for image, one in zip(images, shown, strict=True)
            if one
        ]
        truth = np.concatenate([np.zeros(SIDE_PX**2, bool) if m is None else m.ravel() for _, m in pixels])
        flat = np.concatenate([one.ravel() for one, _ in pixels])
        said = metrics.values()
        assert (metrics.images_good, metrics.images_defect) == (3, labels.sum())
        assert said["image_auroc"] == pytest.approx(roc_auc_score(labels, scores[shown]))
        assert said["image_average_precision"] == pytest.approx(
            average_precision_score(labels, scores[shown])
        )
        # An image alone and in a batch differ by rounding, which moves pixels that are almost at the baseline.
        assert said["pixel_auroc"] == pytest.approx(roc_auc_score(truth, flat), abs=1e-5)
        assert said["pixel_average_precision"] == pytest.approx(
            average_precision_score(truth, flat), abs=1e-5
        )
        for measure, interval in metrics.intervals().items():
            assert interval is not None, measure
            assert 0 <= interval.low <= interval.high <= 1, measure
        limit = found.threshold
        assert limit is not None
        assert metrics.detection_rate == pytest.approx((scores[shown][labels] > limit).mean())


def test_the_document_names_its_protocol_its_models_and_every_type(place: Workplace) -> None:
    command = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    outcome = cfa(*command, "--json", "-")
    assert outcome.code == 0, outcome
    document = outcome.document
    assert (document["schema_version"], document["protocol"]) == (2, "last")
    assert [model["geometry"] for model in document["models"]] == ["whole"]
    assert document["models"][0]["generation"] == document["generation"] == "0002"
    for part in (document, *document["defects"].values()):
        for measure in MEASURES:
            assert 0 <= part[measure] <= 1, measure
        low, high = part["aupro_interval_95"]
        assert low <= high
        assert part["image_f1_threshold"] > 0
        assert part["pixel_f1_threshold"] > 0
        assert set(part["pixel_binning_error"].values()) == {0.0}
    assert document["defects"]["hole"]["images_defect"] == 3
    assert document["figures"] == []
    assert json.dumps(document, allow_nan=False)
    for word in ("image AUROC", "pixel AUROC", "AUPRO", "  hole", "  scratch", "best F1", "last epoch"):
        assert word in outcome.err, word
    assert "published" not in outcome.err


def test_all_categories_get_a_mean_that_leaves_nobody_out(place: Workplace, tmp_path: Path) -> None:
    shutil.copytree(place.data / "weave", tmp_path / "data" / "weave")
    shutil.copytree(place.data / "weave", tmp_path / "data" / "twill")
    shutil.copytree(place.models, tmp_path / "models")
    shutil.copytree(place.models / "weave", tmp_path / "models" / "twill")
    command = ("evaluate", "-c", "all", "--data-root", tmp_path / "data", "--models-dir", tmp_path / "models")
    outcome = cfa(*command, "--json", "-")
    document = outcome.document
    assert (document["schema_version"], document["protocol"]) == (2, "last")
    for measure in MEASURES:
        each = [one[measure] for one in document["categories"]]
        assert document["mean"][measure] == pytest.approx(sum(each) / 2)
    assert "mean of 2" in outcome.err
    shutil.rmtree(tmp_path / "data" / "twill" / "ground_truth")
    without = cfa(*command, "--json", "-").document
    assert without["mean"]["aupro"] is None
    assert without["mean"]["image_auroc"] is not None
    shutil.rmtree(tmp_path / "data" / "twill")
    assert cfa(*command, "--json", "-").document["mean"] is None


# ------------------------------------------------------------------------------------------ fused


def test_fused_maps_are_averaged_where_both_looked(
    whole: ModelBundle, crop: ModelBundle, images: list[TestImage]
) -> None:
    found = evaluate([whole, crop], images, batch_size=4)
    fused, truth = [], []
    for image, row in zip(images, found.rows, strict=True):
        one, other = source_map(whole, image.path), source_map(crop, image.path)
        assert np.isnan(other[0]).all()
        assert not np.isnan(one).any()
        both = np.where(np.isnan(other), one, (one + other) / 2)
        assert row.score == pytest.approx(both.max(), rel=1e-5)
        assert row.is_anomalous is None
        fused.append(both)
        truth.append(
            read_mask(image.mask, SIDE_PX, SIDE_PX) if image.mask else np.zeros_like(both, dtype=bool)
        )
    assert found.pixel_auroc == pytest.approx(
        roc_auc_score(np.stack(truth).ravel(), np.stack(fused).ravel()), abs=1e-5
    )
    assert (found.threshold, found.false_alarm_rate, found.detection_rate) == (None, None, None)
    assert [model.geometry for model in found.models] == ["whole", "crop"]


def test_a_model_fused_with_itself_is_itself(whole: ModelBundle, images: list[TestImage]) -> None:
    alone, twice = evaluate(whole, images), evaluate([whole, whole], images)
    assert twice.pixel_auroc == alone.pixel_auroc
    assert twice.aupro == alone.aupro
    assert twice.image_auroc == alone.image_auroc


def test_fusing_on_the_command_line(place: Workplace, tmp_path: Path) -> None:
    command = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    document = cfa(*command, "--fuse", place.root / "crop", "--json", "-").document
    assert [model["geometry"] for model in document["models"]] == ["whole", "crop"]
    assert document["threshold"] is None
    (tmp_path / "models").mkdir()
    line = cfa(*command, "--fuse", tmp_path / "models").error_line
    assert f"a model at {tmp_path / 'models' / 'weave'}" in line


def test_models_of_different_categories_are_not_fused(
    place: Workplace, whole: ModelBundle, images: list[TestImage], tmp_path: Path
) -> None:
    made_up.write_category(tmp_path / "data", "twill", train=6, test=1)
    other = Workplace(root=tmp_path)
    assert other.build(category="twill").code == 0
    twill = ModelBundle.load(other.models / "twill")
    with pytest.raises(SpecError, match="models of weave, twill"):
        evaluate([whole, twill], images)
    with pytest.raises(SpecError, match="got none"):
        evaluate([], images)
    (other.models / "twill").rename(other.models / "weave")  # a folder does not make a category
    command = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    assert "models of weave, twill" in cfa(*command, "--fuse", other.models).error_line


def test_an_image_that_cannot_be_read_is_one_row_of_the_ensemble(
    place: Workplace, whole: ModelBundle, crop: ModelBundle, tmp_path: Path
) -> None:
    shutil.copytree(place.data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "weave" / "test" / "good" / "zz.png").write_bytes(b"")
    broken = open_category(tmp_path, "weave").test()
    found = evaluate([whole, crop], broken, batch_size=2)
    assert found.rejected == 1
    assert [row.uri for row in found.rows if row.error] == ["test/good/zz.png"]
    assert evaluate([whole, crop], [image for image in broken if image.path.stem != "zz"]).image_auroc == (
        found.image_auroc
    )
    assert evaluate_published(whole, broken).rejected == 1


# -------------------------------------------------------------------------------------- published


def test_every_epoch_is_evaluated_as_if_alone_and_the_best_of_each_is_given(
    whole: ModelBundle, images: list[TestImage], place: Workplace
) -> None:
    found = evaluate_published(whole, images, batch_size=4)
    alone = ModelBundle.load(place.models / "weave")
    spec = alone.manifest.spec
    assert len(found.epochs) == EPOCHS
    for phi, said in zip(alone.epoch_descriptors(), found.epochs, strict=True):
        alone.scorer = Scorer(
            alone.backbone,
            phi,
            alone.bank,
            features=spec.features,
            score=spec.score,
            baseline=alone.scorer.baseline,
        )
        assert said == pytest.approx(values(evaluate(alone, images)), abs=1e-6)
    assert found.epochs[-1] == pytest.approx(values(evaluate(whole, images)), abs=1e-6)
    for measure, best in found.best().items():
        each = [epoch[measure] or 0.0 for epoch in found.epochs]
        assert best is not None
        assert (best.value, best.epoch) == (max(each), each.index(max(each)) + 1)


def test_the_backbone_runs_once_whatever_the_number_of_epochs(
    whole: ModelBundle, images: list[TestImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Backbone.pyramid, []

    def counting(self: Backbone, pixels: torch.Tensor) -> list[torch.Tensor]:
        calls.append(1)
        return real(self, pixels)

    monkeypatch.setattr(Backbone, "pyramid", counting)
    evaluate_published(whole, images, batch_size=3)
    assert len(calls) == 3  # 9 images


def test_the_published_protocol_is_labelled_wherever_its_numbers_appear(place: Workplace) -> None:
    command = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    outcome = cfa(*command, "--protocol", "published", "--json", "-")
    assert outcome.code == 0, outcome
    document = outcome.document
    label = "published protocol: best of 3 epochs on the test split, each metric by itself"
    assert (document["protocol"], document["label"]) == ("published", label)
    assert label in " ".join(outcome.err.split())
    assert "last epoch" not in outcome.err
    assert set(document["best_epoch"]) == set(MEASURES)
    for measure in MEASURES:
        each = [epoch[measure] for epoch in document["epochs"]]
        assert document[measure] == max(each)
        assert document["epochs"][document["best_epoch"][measure] - 1][measure] == max(each)
    assert "images" not in document
    assert not any("interval" in name for name in document)


def test_published_and_figures_do_not_go_together(place: Workplace, tmp_path: Path) -> None:
    command = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    outcome = cfa(*command, "--protocol", "published", "--figures", tmp_path / "figures")
    assert outcome.code == 2
    assert not (tmp_path / "figures").exists()
    assert cfa(*command, "--protocol", "best").code == 2


def test_a_model_without_kept_epochs_is_one_line(place: Workplace, images: list[TestImage]) -> None:
    command = ("evaluate", "-c", "weave", "--data-root", place.data, "--models-dir", place.root / "crop")
    line = cfa(*command, "--protocol", "published").error_line
    assert "train it with --keep-epochs" in line
    with pytest.raises(BundleError):
        evaluate_published(ModelBundle.load(place.models / "weave" / "generations" / "0001"), images)


def test_fused_epochs_go_in_step(
    whole: ModelBundle, images: list[TestImage], monkeypatch: pytest.MonkeyPatch, place: Workplace
) -> None:
    alone = evaluate_published(whole, images)
    twice = evaluate_published([whole, whole], images)
    for one, other in zip(alone.epochs, twice.epochs, strict=True):
        assert other == pytest.approx(one, abs=1e-6)
    shorter = ModelBundle.load(place.models / "weave")
    kept = shorter.epoch_descriptors()
    monkeypatch.setattr(shorter, "epoch_descriptors", lambda: kept[:2])
    with pytest.raises(SpecError, match="same number of kept epochs, got 3 and 2"):
        evaluate_published([whole, shorter], images)


def test_ties_go_to_the_first_epoch_and_missing_values_stay_missing() -> None:
    def epoch(image: float, aupro: float | None) -> dict[str, float | None]:
        return {**dict.fromkeys(MEASURES), "image_auroc": image, "aupro": aupro}

    found = PublishedEvaluation(
        category="x",
        models=(),
        epochs=(epoch(0.5, None), epoch(0.9, 0.2), epoch(0.9, 0.1)),
        masks="",
        rejected=0,
    )
    best = found.best()
    assert best["image_auroc"] is not None
    assert (best["image_auroc"].value, best["image_auroc"].epoch) == (0.9, 2)
    assert best["aupro"] is not None
    assert best["aupro"].epoch == 2
    assert best["pixel_f1"] is None
    assert mean_over_categories([found, found])["image_auroc"] == 0.9
    assert mean_over_categories([])["image_auroc"] is None


# -------------------------------------------------------------------------------------- one class


@pytest.mark.parametrize("left", ["good", "hole"])
def test_one_class_only(whole: ModelBundle, images: list[TestImage], left: str) -> None:
    some = [image for image in images if image.defect == left]
    found = evaluate(whole, some)
    assert found.image_auroc is None
    document = found.to_dict()
    assert document["image_auroc_interval_95"] is None
    assert (document["false_alarm_rate"] is None) == (left != "good")
    assert (document["detection_rate"] is None) == (left == "good")
    assert found.masks == ("no defect images" if left == "good" else "")
    assert json.dumps(document, allow_nan=False)
    assert evaluate_published(whole, some).best()["image_auroc"] is None
