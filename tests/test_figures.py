"""The pictures of an evaluation: which images, what they are called, and what is in them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from made_up import Workplace, cfa
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

import cfa_index
from cfa_index import (
    Backbone,
    Cloud,
    ModelBundle,
    TestRow,
    VerdictPicture,
    draw_figures,
    evaluate,
    feature_view,
    open_category,
    prepare_figures,
    verdict_panel,
)
from cfa_index.errors import BankError, OutputError
from cfa_index.workflows.feature_sample import draw_features
from cfa_index.workflows.figures import worst_and_best

GREEN, BLUE = (0, 230, 118), (41, 121, 255)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A trained category with masks."""
    place = made_up.workplace(tmp_path_factory.mktemp("place"), train=12, test=3)
    made_up.write_scratches(place.data, 2)
    assert place.build().code == 0
    assert cfa("train", "-c", "weave", *place.stores).code == 0
    return place


def evaluate_command(place: Workplace, data: Path | None = None) -> tuple[Any, ...]:
    return ("evaluate", "-c", "weave", "--data-root", data or place.data, *place.model)


def row(defect: str, score: float, error: str = "") -> TestRow:
    return TestRow(uri="x", defect=defect, score=score, is_anomalous=None, error=error)


def count_of(file: Path, colour: tuple[int, int, int]) -> int:
    with Image.open(file) as picture:
        return int((np.asarray(picture.convert("RGB")) == colour).all(axis=2).sum())


def test_misses_are_the_farthest_on_the_wrong_side_and_hits_the_clearest() -> None:
    rows = [
        row("good", 1.5),  # false alarm by 0.5
        row("good", 0.2),
        row("hole", 0.1),  # missed by 0.9
        row("hole", 1.0),  # at the threshold is not above it: missed by 0
        row("crack", 3.0),
        row("crack", 2.0),
        row("crack", 9.0, error="unreadable"),
    ]
    assert worst_and_best(rows, 1.0, 2) == [("miss_01", 2), ("miss_02", 0), ("hit_01", 4), ("hit_02", 5)]
    assert [at for _, at in worst_and_best(rows, 1.0, 9)] == [2, 0, 3, 4, 5]
    assert worst_and_best(rows, 1.0, 0) == []


def test_the_command_writes_panels_and_features(place: Workplace, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    (figures / "weave").mkdir(parents=True)
    for old in ("miss_07_hole_000.png", "notes.txt", "hit_list.png"):
        (figures / "weave" / old).write_bytes(b"old")
    outcome = cfa(*evaluate_command(place), "--figures", figures, "--figure-count", "2", "--json", "-")
    assert outcome.code == 0, outcome
    files = {Path(file).name: Path(file) for file in outcome.document["figures"]}
    assert {path.name for path in (figures / "weave").iterdir()} == {*files, "notes.txt", "hit_list.png"}
    hits = [name for name in files if name.startswith("hit")]
    assert [name[:10] for name in hits] == ["hit_01_hol", "hit_02_hol"]
    assert "features.png" in files
    scores = {image["uri"]: image["score"] for image in outcome.document["images"]}
    first, second = (scores[f"test/hole/{name[-7:]}"] for name in hits)
    assert first == max(scores.values())
    assert first >= second
    with Image.open(files[hits[0]]) as picture:
        assert 1200 < picture.width < 2000
        assert 300 < picture.height < 800
    assert count_of(files[hits[0]], GREEN) > 500  # outlines of the mask
    assert count_of(files[hits[0]], BLUE) > 100  # outline of the segmentation
    assert not made_up.leftovers(tmp_path)


def test_the_same_evaluation_draws_the_same_pictures(place: Workplace, tmp_path: Path) -> None:
    bundle = ModelBundle.load(place.models / "weave")
    images = open_category(place.data, "weave").test()
    found = evaluate(bundle, images)
    for name in ("one", "two"):
        draw_figures(bundle, images, found, tmp_path / name, count=1, credit="A. Maker, CC BY 4.0")
    assert made_up.tree(tmp_path / "one") == made_up.tree(tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        with Image.open(file) as picture:
            assert isinstance(picture, PngImageFile)
            assert picture.text == {"Copyright": "A. Maker, CC BY 4.0"}


def test_without_masks_and_for_fused_models(place: Workplace, tmp_path: Path) -> None:
    """No pixel threshold, no threshold of the model: the best F1 over the images serves for both."""
    shutil.copytree(place.data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "weave" / "ground_truth")
    outcome = cfa(
        *evaluate_command(place, tmp_path / "data"),
        *("--fuse", place.models, "--figures", tmp_path / "figures", "--figure-count", "1", "--json", "-"),
    )
    assert outcome.code == 0, outcome
    names = [Path(file).name for file in outcome.document["figures"]]
    assert names[-2:] == ["features_1.png", "features_2.png"]
    hit = next(name for name in names if name.startswith("hit_01"))
    assert count_of(tmp_path / "figures" / "weave" / hit, GREEN) == 0


@pytest.mark.parametrize("left", ["good", "hole"])
def test_figures_of_one_class_only(place: Workplace, tmp_path: Path, left: str) -> None:
    bundle = ModelBundle.load(place.models / "weave")
    images = [one for one in open_category(place.data, "weave").test() if one.defect == left]
    for models in (bundle, [bundle, bundle]):
        found = evaluate(models, images)
        drawn = draw_figures(models, images, found, tmp_path / "figures", count=1)
        kinds = [file.name.partition("_")[0] for file in drawn]
        assert "hit" not in kinds or left != "good"
        assert all(file.is_file() for file in drawn)


def test_a_feature_that_is_no_number_is_not_drawn(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ModelBundle.load(place.models / "weave")
    images = open_category(place.data, "weave").test()
    real = Backbone.pyramid

    def spoiled(self: Backbone, pixels: Tensor) -> list[Tensor]:
        levels = real(self, pixels)
        levels[0][0, 1, 2, 3] = torch.nan
        return levels

    monkeypatch.setattr(Backbone, "pyramid", spoiled)
    rows = [row(image.defect, 1.0) for image in images]
    with pytest.raises(BankError, match="finite queries"):
        draw_features(bundle, images, rows, tmp_path / "features.png", threads=1, credit="")
    assert not (tmp_path / "features.png").exists()


def test_difficult_names_stay_in_the_folder(place: Workplace, tmp_path: Path) -> None:
    test = tmp_path / "data" / "weave" / "test"
    shutil.copytree(place.data / "weave" / "test" / "good", test / "good")
    for number, name in enumerate(("$x_{1}^2$ \\frac", "夜 [red] %s", "..")):
        made_up.write_image(test / "deep ü $hole$" / f"{name}.png", made_up.texture(number) // 4)
    outcome = cfa(
        *evaluate_command(place, tmp_path / "data"),
        *("--figures", tmp_path / "figures", "--json", "-"),
    )
    assert outcome.code == 0, outcome
    drawn = [Path(file) for file in outcome.document["figures"]]
    assert len(drawn) >= 4
    assert all(file.is_file() and file.parent == tmp_path / "figures" / "weave" for file in drawn)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_scored(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfa_index import Scorer

    def forbid(*args: object) -> Any:
        raise AssertionError("scored")

    monkeypatch.setattr(Scorer, "score_pyramid", forbid)
    (tmp_path / "file").write_bytes(b"")
    line = cfa(*evaluate_command(place), "--figures", tmp_path / "file").error_line
    assert str(tmp_path / "file") in line
    with pytest.raises(OutputError):
        prepare_figures(Path("/proc/figures"))
    with pytest.raises(OutputError, match="/proc"):
        prepare_figures(Path("/proc"))


def test_without_matplotlib_one_line_says_how_to_install_it(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else real(name, *more)
    )
    line = cfa(*evaluate_command(place), "--figures", tmp_path / "figures").error_line
    assert line.endswith("run: pip install 'cfa-index[figures]'")
    assert not (tmp_path / "figures").exists()
    assert cfa(*evaluate_command(place)).code == 0


def test_drawing_leaves_matplotlibs_global_state_alone() -> None:
    # Read, not run: the libraries that our metrics are checked against import pyplot themselves.
    for file in (Path(cfa_index.__file__).parent / "report").glob("*.py"):
        assert "pyplot" not in file.read_text(), file


@pytest.mark.parametrize("size", [(300, 200), (40, 900), (3000, 20), (1, 1)])
def test_a_panel_takes_any_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    anomaly_map = np.full((height, width), 0.2, dtype=np.float32)
    anomaly_map[0] = np.nan if height > 1 else 0.2
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 2, width // 2] = True  # one pixel stays seen however the image is shrunk
    anomaly_map[mask] = 2.0
    verdict_panel(
        VerdictPicture(
            image=Image.new("RGB", size, (90, 90, 90)),
            anomaly_map=anomaly_map,
            mask=mask,
            defect="dot",
            name="test/dot/" + "long" * 40 + ".png",
            score=2.0,
            outcome="found",
            threshold=1.0,
            threshold_by="the model's threshold",
            segment_from=1.5,
            segment_by="best F1 over all pixels",
        )
    ).save(tmp_path / "panel.png")
    assert count_of(tmp_path / "panel.png", GREEN) > 0


def test_the_view_of_features_takes_few_points_and_one_dimension(tmp_path: Path) -> None:
    for points, width in ((2, 1), (2, 2), (30, 5)):
        draw = np.random.default_rng(points)
        cloud = Cloud(
            title="only",
            patches=draw.normal(size=(points, width)).astype(np.float32),
            scores=np.full(points, 0.5, dtype=np.float32),
        )
        feature_view(
            [cloud],
            draw.normal(size=(3, width)).astype(np.float32),
            np.arange(points) % 2 == 0,
            title="few",
            defective_means="even ones",
        ).save(tmp_path / f"{points}-{width}.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_plane_shows_what_is_far_apart_as_far_apart() -> None:
    from cfa_index.report.clouds import _Plane

    draw = np.random.default_rng(0)
    flat = draw.normal(size=(50, 2)) @ np.linalg.qr(draw.normal(size=(6, 2)))[0].T
    plane = _Plane([flat[:20].astype(np.float32), flat[20:].astype(np.float32)])
    places = plane(flat)
    true = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(places[:, None] - places[None], axis=2), true, atol=1e-5)
    assert plane.shares.sum() == pytest.approx(1)
