"""Scoring a folder: rows, what is resumed, what is noticed, and what is the same twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from made_up import Workplace, cfa
from numpy.typing import NDArray

from cfa_index import Event, ModelBundle, Scorer, StageAdvanced, StageTotal, score_folder
from cfa_index.errors import DatasetError, OutputError
from cfa_index.places import LocalPlace

ODD_NAMES = (
    "with space.png",
    'it\'s "quoted".png',
    "комплект 部品 é.png",
    "new\nline\r.png",
    "comma, semicolon; tab\t.png",
    "[bold]markup[red].png",
    "carriage\rreturn.png",
    "夜" * 80 + ".png",
    "-o.png",
    "%s {x} $HOME.PNG",
    "trailing .png",
    "\u2028separator\u0085.png",
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with difficult names, in a folder with a difficult name, and broken ones."""
    folder = tmp_path_factory.mktemp("odd") / "night shift [1] 夜"
    for number, name in enumerate(ODD_NAMES):
        made_up.write_image(folder / ("sub [/x]" if number % 2 else ".") / name, made_up.texture(number))
    made_up.write_broken(folder)
    return folder


def test_names_come_back_as_they_are_and_the_csv_reads_as_the_parquet(
    trained: Workplace, odd: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out [/b] é"
    command = ("score", odd, "-c", "weave", *trained.model, "-o", target, "--heatmaps", "--json", "-")
    outcome = cfa(*command)
    assert outcome.code == 3, outcome
    document = outcome.document
    assert (document["images"], document["rejected"]) == (len(ODD_NAMES) + 5, 5)
    rows = pq.read_table(target / "parts" / "part-00000000.parquet").to_pylist()
    assert {row["uri"].rpartition("/")[2] for row in rows if not row["error"]} == set(ODD_NAMES)
    assert [row["image_id"] for row in rows] == list(range(len(rows)))
    with (target / "scores.csv").open(newline="", encoding="utf-8") as handle:
        read = list(csv.DictReader(handle))
    assert len(read) == len(rows)
    for text, row in zip(read, rows, strict=True):
        expected = {name: "" if value is None else str(value) for name, value in row.items()}
        if row["uri"].startswith("-"):
            expected["uri"] = "'" + row["uri"]  # no formula
        assert text == expected
        assert row["score"] is None or np.float32(text["score"]) == np.float32(row["score"])
    pictures = sorted((target / "heatmaps").iterdir())
    assert len(pictures) == len(ODD_NAMES)
    assert all(path.name.isprintable() and " " not in path.name for path in pictures)


def test_the_other_commands_take_such_names_too(trained: Workplace, odd: Path, tmp_path: Path) -> None:
    images = [path for path in odd.rglob("*") if path.name in ODD_NAMES]
    outcome = cfa("query", *images, "-c", "weave", *trained.model, "-o", tmp_path / "[/q]", "--json", "-")
    assert outcome.code == 0, outcome
    assert {image["path"] for image in outcome.document["images"]} == {str(path) for path in images}
    assert all(Path(image["picture"]).is_file() for image in outcome.document["images"])

    root = tmp_path / "data [/root]"
    shutil.copytree(odd, root / "部品 [b] [a" / "train" / "good")
    made_up.write_good(root / "部品 [b] [a" / "test" / "good", 2)
    shutil.copytree(odd, root / "部品 [b] [a" / "test" / "scratch [/]")
    place = Workplace(root=tmp_path)
    options = ("-c", "部品 [b] [a", "--data-root", root)
    built = cfa("build", *options, *place.stores, *made_up.QUICK, "--json", "-")
    assert built.code == 3, built
    assert built.document["images"] == len(ODD_NAMES)
    assert cfa("train", "-c", "部品 [b] [a", *place.stores).code == 0
    evaluated = cfa("evaluate", *options, *place.model, "--json", "-")
    assert evaluated.code == 3, evaluated
    assert evaluated.document["images_defect"] == len(ODD_NAMES)


def test_names_that_are_not_utf8(trained: Workplace, tmp_path: Path) -> None:
    """Such files exist on old disks. They are scored, built from and shown; their uri is escaped."""
    place = made_up.workplace(tmp_path, train=6, test=1)
    name = os.fsdecode(b"caf\xe9.png")
    folder = place.data / "weave" / "train" / "good"
    made_up.write_image(folder / name, made_up.texture(3))
    (folder / os.fsdecode(b"br\xf6ken.png")).write_bytes(b"")
    scored = cfa(
        "score", folder, "-c", "weave", *trained.model, "-o", tmp_path / "out", "--heatmaps", "--json", "-"
    )
    assert scored.code == 3, scored
    rows = pq.read_table(tmp_path / "out" / "parts").to_pylist()
    assert len(rows) == 8
    assert [row["uri"] for row in rows if "caf" in row["uri"]] == ["caf\\udce9.png"]
    queried = cfa("query", folder / name, "-c", "weave", *trained.model, "-o", tmp_path / "q", "--json", "-")
    assert queried.code == 0, queried
    built = place.build("--json", "-")
    assert built.code == 3, built
    assert (built.document["images"], built.document["images_rejected"]) == (7, 1)
    assert cfa("train", "-c", "weave", *place.stores).code == 0


def test_a_second_run_skips_the_parts_that_are_there(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_up.write_good(tmp_path / "in", 10)
    (folder / "empty.png").write_bytes(b"")
    command = ("score", folder, "-c", "weave", *trained.model, "-o", tmp_path / "out", "--json", "-")
    command = (*command, "--shard-images", "4", "--batch-size", "4", "--no-report")
    real, calls = Scorer.score_pixels, []

    def counted(self: Scorer, *args: Any, **options: Any) -> Any:
        calls.append(len(args[0]))
        if len(calls) > 2 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(Scorer, "score_pixels", counted)
    assert cfa(*command).code == 130  # in the third part
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 2
    assert not (tmp_path / "out" / "scores.csv").exists()
    (tmp_path / "again").touch()
    calls.clear()
    resumed = cfa(*command)
    assert resumed.code == 3, resumed
    assert calls == [4]  # filled up
    assert {k: resumed.document[k] for k in ("images", "resumed", "rejected")} == {
        "images": 11,
        "resumed": 8,
        "rejected": 1,
    }
    calls.clear()
    done = cfa(*command)
    assert (done.code, done.document["resumed"], calls) == (3, 11, [])
    assert (tmp_path / "out" / "scores.csv").read_text().count("\n") == 12


def test_another_run_may_not_take_the_target(trained: Workplace, tmp_path: Path) -> None:
    folder = made_up.write_good(tmp_path / "in", 2)
    command = ("score", folder, "-c", "weave", *trained.model, "-o", tmp_path / "out")
    assert cfa(*command, "--threshold", "1.5").code == 0
    before = made_up.tree(tmp_path / "out")
    line = cfa(*command, "--threshold", "2.5").error_line
    assert "threshold 1.5 then, 2.5 now" in line
    line = cfa(*command, "--threshold", "1.5", "--heatmaps").error_line
    assert "heatmaps False then, True now" in line
    assert made_up.tree(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert "something else" in cfa(*command[:-1], tmp_path / "mine").error_line
    assert "outside" in cfa(*command[:-1], folder / "out").error_line
    assert "outside" in cfa(*command[:-1], folder).error_line
    assert sorted(path.name for path in folder.iterdir()) == ["000.png", "001.png"]


def test_a_part_that_was_cut_short_is_written_again(trained: Workplace, tmp_path: Path) -> None:
    folder = made_up.write_good(tmp_path / "in", 2)
    command = ("score", folder, "-c", "weave", *trained.model, "-o", tmp_path / "out", "--json", "-")
    assert cfa(*command).code == 0
    before = made_up.tree(tmp_path / "out")
    part = tmp_path / "out" / "parts" / "part-00000000.parquet"
    part.write_bytes(part.read_bytes()[:500])
    again = cfa(*command)
    assert (again.code, again.document["resumed"]) == (0, 0)
    assert made_up.tree(tmp_path / "out") == before


Run = Callable[..., Any]


@pytest.fixture
def scoring(trained: Workplace, tmp_path: Path) -> tuple[Path, Path, Run]:
    """A folder of 10 images, a target, and a run over it in parts of 4 that gives its report's document."""
    folder, target = made_up.write_good(tmp_path / "in", 10), tmp_path / "out"
    command = ("score", folder, "-c", "weave", *trained.model, "-o", target, "--heatmaps", "--json", "-")
    return folder, target, lambda *more: cfa(*command, "--shard-images", "4", *more).document


def heatmap_ids(target: Path) -> list[int]:
    return sorted(int(path.name.partition("_")[0]) for path in (target / "heatmaps").iterdir())


def rows_of(target: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((target / "parts").iterdir()) for row in pq.read_table(file).to_pylist()]


def maps_of(target: Path) -> NDArray[np.float32]:
    return np.asarray(zarr.open_array(target / "maps", mode="r")[:], dtype=np.float32)


def test_a_rescan_scores_what_is_new_or_has_changed(scoring: tuple[Path, Path, Run]) -> None:
    folder, target, run = scoring
    (folder / "005.png").write_bytes(b"")
    assert run()["rejected"] == 1
    made_up.write_image(folder / "005.png", made_up.texture(5))
    made_up.write_image(folder / "0035.png", made_up.texture(50))
    assert (run()["images"], run()["resumed"]) == (10, 10)  # the list of the first run
    again = run("--rescan")
    assert (again["images"], again["rejected"], again["resumed"]) == (11, 0, 9)
    assert heatmap_ids(target) == [*range(10), 12]
    assert rows_of(target)[-1]["uri"] == "0035.png"
    # Of the same size, so that the time alone tells.
    image = folder / "000.png"
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    assert run("--rescan")["resumed"] == 10
    assert run("--rescan")["resumed"] == 11


def test_a_changed_image_costs_its_neighbours_nothing(scoring: tuple[Path, Path, Run]) -> None:
    """Those that are gone keep their scores, maps and heatmaps, in the shard of the changed one, too."""
    folder, target, run = scoring
    run("--maps")
    before, maps = rows_of(target), maps_of(target)
    (folder / "004.png").unlink()
    made_up.write_image(folder / "005.png", made_up.texture(70))
    again = run("--maps", "--rescan")
    assert (again["images"], again["rejected"], again["resumed"]) == (10, 0, 9)
    after = rows_of(target)
    assert [row["image_id"] for row, then in zip(after, before, strict=True) if row != then] == [5]
    others = [number for number in range(10) if number != 5]
    np.testing.assert_array_equal(maps_of(target)[others], maps[others])
    assert heatmap_ids(target) == list(range(10))


def test_rows_of_images_that_are_gone_stay(scoring: tuple[Path, Path, Run]) -> None:
    folder, target, run = scoring
    run()
    for file in list(folder.iterdir())[1:]:
        file.unlink()
    before = made_up.tree(target)
    assert run("--rescan")["resumed"] == 10
    shutil.rmtree(folder)
    assert run()["resumed"] == 10
    after = made_up.tree(target)
    assert {name for name in before if before[name] != after[name]} <= {"lock", "listing/ended.json"}
    (target / "parts" / "part-00000001.parquet").unlink()
    with pytest.raises(json.JSONDecodeError):  # no document, since a share may not be mounted
        run()
    folder.mkdir()  # which is what its mount point looks like
    with pytest.raises(json.JSONDecodeError):
        run()


def test_a_source_that_goes_in_the_middle_ends_the_run(
    scoring: tuple[Path, Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, run = scoring
    real = LocalPlace.require
    asked: list[LocalPlace] = []

    def going(self: LocalPlace) -> None:
        asked.append(self)
        if len(asked) == 2:
            folder.rename(folder.with_name("away"))
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(LocalPlace, "require", going)
        with pytest.raises(json.JSONDecodeError):
            run()
    folder.with_name("away").rename(folder)
    assert run()["rejected"] == 0  # no row says that its image was missing


def test_a_rescan_that_was_interrupted_is_done_first(
    scoring: tuple[Path, Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfa_index.workflows.score_listing import Listing

    folder, target, run = scoring
    run()
    made_up.write_image(folder / "000.png", made_up.texture(60))
    made_up.write_image(folder / "zz.png", made_up.texture(61))
    real = Listing._correct

    def interrupted(self: Listing, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Listing, "_correct", interrupted)
        assert cfa("score", folder, "-c", "weave", "-o", target, "--rescan").code != 0
    assert Listing._correct is real
    assert run()["images"] in (10, 11)


def test_a_rescan_stops_when_asked_and_is_done_first_the_next_time(
    trained: Workplace, tmp_path: Path
) -> None:
    bundle = ModelBundle.load(trained.models / "weave")
    folder, target = made_up.write_good(tmp_path / "in", 6), tmp_path / "out"
    score_folder(bundle, folder, target, shard_images=4)
    made_up.write_image(folder / "0025.png", made_up.texture(50))
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 2  # in the middle of the walk

    report = score_folder(bundle, folder, target, shard_images=4, rescan=True, stop=stop)
    assert (report.stopped, report.images) == (True, 0)
    report = score_folder(bundle, folder, target, shard_images=4)
    assert (report.stopped, report.images, report.resumed) == (False, 7, 6)


def test_errors_are_tried_again_when_asked(scoring: tuple[Path, Path, Run]) -> None:
    folder, target, run = scoring
    broken = ("001.png", "002.png", "007.png")
    for name in broken:
        (folder / name).write_bytes(b"")
    assert run("--maps")["rejected"] == 3
    before = {row["uri"]: row for row in rows_of(target)}
    maps = maps_of(target)
    for number, name in enumerate(broken[1:]):
        made_up.write_image(folder / name, made_up.texture(number))
    assert run("--maps")["rejected"] == 3
    again = run("--maps", "--retry-errors")
    assert (again["images"], again["rejected"], again["resumed"]) == (10, 1, 7)
    after = {row["uri"]: row for row in rows_of(target)}
    assert [uri for uri in before if before[uri] != after[uri]] == ["002.png", "007.png"]
    assert heatmap_ids(target) == [0, *range(2, 10)]
    found = maps_of(target)
    repaired = [2, 7]
    np.testing.assert_array_equal(np.delete(found, repaired, axis=0), np.delete(maps, repaired, axis=0))
    assert np.isnan(found[1]).all()
    for image_id, uri in ((2, "002.png"), (7, "007.png")):
        assert np.float32(found[image_id].max()) == np.float32(after[uri]["score"])


def test_maps_are_one_array_and_their_maximum_is_the_score(trained: Workplace, tmp_path: Path) -> None:
    folder = made_up.write_good(tmp_path / "in", 7)
    (folder / "003.png").write_bytes(b"")
    bundle = ModelBundle.load(trained.models / "weave")
    report = score_folder(bundle, folder, tmp_path / "out", maps=True, shard_images=4, batch_size=3)
    assert (report.images, report.rejected) == (7, 1)
    maps = maps_of(tmp_path / "out")
    assert maps.shape == (7, made_up.SIDE_PX, made_up.SIDE_PX)
    for row in rows_of(tmp_path / "out"):
        one = maps[row["image_id"]]
        if row["error"]:
            assert np.isnan(one).all()
        else:
            assert np.float32(row["score"]) == one.max()
            verdict = bundle.score([folder / row["uri"]])[0]
            np.testing.assert_allclose(one, verdict.anomaly_map, rtol=1e-4, atol=1e-6)


def test_scores_do_not_depend_on_what_failed_beside_them(trained: Workplace, tmp_path: Path) -> None:
    bundle = ModelBundle.load(trained.models / "weave")
    folder = made_up.write_good(tmp_path / "in", 9)
    score_folder(bundle, folder, tmp_path / "whole", batch_size=4)
    for name in ("000.png", "006.png"):
        (folder / name).write_bytes(b"")
    score_folder(bundle, folder, tmp_path / "broken", batch_size=4)
    whole = {row["uri"]: row["score"] for row in rows_of(tmp_path / "whole")}
    for row in rows_of(tmp_path / "broken"):
        assert row["error"] or row["score"] == whole[row["uri"]]


def test_a_score_that_is_no_number_is_an_error_and_not_good(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ModelBundle.load(trained.models / "weave")
    folder, target = made_up.write_good(tmp_path / "in", 3), tmp_path / "out"
    real = Scorer.score_pixels

    def overflowing(self: Scorer, *args: Any, **options: Any) -> Any:
        found = real(self, *args, **options)
        with torch.inference_mode():
            found.maps[1, 0, 0] = torch.nan
        return found

    monkeypatch.setattr(Scorer, "score_pixels", overflowing)
    report = score_folder(bundle, folder, target, maps=True)
    assert report.rejected == 1
    assert [row["score"] is None for row in rows_of(target)] == [False, True, False]
    assert "finite score" in rows_of(target)[1]["error"]
    assert np.isnan(maps_of(target)[1]).all()


def test_workers_and_threads_give_the_same_rows(trained: Workplace, tmp_path: Path) -> None:
    bundle = ModelBundle.load(trained.models / "weave")
    folder = made_up.write_good(tmp_path / "in", 5)
    made_up.write_broken(folder)
    for workers in (0, 2):
        score_folder(bundle, folder, tmp_path / str(workers), workers=workers)
    assert rows_of(tmp_path / "0") == rows_of(tmp_path / "2")


def test_asked_to_stop_it_finishes_the_shard(trained: Workplace, tmp_path: Path) -> None:
    bundle = ModelBundle.load(trained.models / "weave")
    folder, target = made_up.write_good(tmp_path / "in", 12), tmp_path / "out"
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) == 1)
        return asked[-1]

    report = score_folder(bundle, folder, target, shard_images=4, batch_size=2, stop=stop)
    assert (report.images, report.stopped) == (4, True)
    assert not (target / "scores.csv").exists()
    report = score_folder(bundle, folder, target, shard_images=4, batch_size=2)
    assert (report.images, report.resumed, report.stopped) == (12, 4, False)


def test_a_source_without_images_leaves_no_target(trained: Workplace, tmp_path: Path) -> None:
    bundle = ModelBundle.load(trained.models / "weave")
    (tmp_path / "in").mkdir()
    for folder in ("in", "nowhere"):
        with pytest.raises(DatasetError):
            score_folder(bundle, tmp_path / folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_vanishes_after_it_was_scored_has_no_heatmap(
    scoring: tuple[Path, Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target, run = scoring
    real = Scorer.score_pixels

    def vanishing(self: Scorer, *args: Any, **options: Any) -> Any:
        (folder / "002.png").unlink(missing_ok=True)
        return real(self, *args, **options)

    monkeypatch.setattr(Scorer, "score_pixels", vanishing)
    assert {key: value for key, value in run().items() if key in ("images", "rejected")} == {
        "images": 10,
        "rejected": 0,
    }
    assert heatmap_ids(target) == [0, 1, 3, 4, 5, 6, 7, 8, 9]


def test_progress_counts_every_image_once(trained: Workplace, tmp_path: Path) -> None:
    folder = made_up.write_good(tmp_path / "in", 5)
    (folder / "001.png").write_bytes(b"")
    bundle = ModelBundle.load(trained.models / "weave")
    for new in (5, 0):
        events: list[Event] = []
        score_folder(bundle, folder, tmp_path / "out", batch_size=2, listener=events.append)
        seen = [event for event in events if isinstance(event, StageAdvanced) and event.stage == "score"]
        assert sum(event.steps for event in seen) == 5
        assert sum(event.fields["images"] for event in seen) == new
        assert seen[-1].fields["errors"] == 1
        assert StageTotal(stage="score", total=5) in events


def test_what_an_ended_worker_was_writing_is_cleared_away(
    scorable: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error ends the workers at once, also one that draws."""
    out = tmp_path / "out"

    def fail(*_: object) -> None:
        (out / "heatmaps").mkdir(exist_ok=True)
        (out / "heatmaps" / ".00000004_000.png.a464e85f.tmp").write_bytes(b"half")
        raise OutputError(expected="room", got="none", remedy="make some")

    monkeypatch.setattr("cfa_index.workflows.score.Pipeline.score", fail)
    with pytest.raises(OutputError):
        score_folder(ModelBundle.load(scorable.models / "weave"), scorable.data / "weave" / "test", out)
    assert not made_up.leftovers(out)
