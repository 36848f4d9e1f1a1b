"""Build, train and score as workflows: what is resumed, what is noticed, what is the same twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up import Workplace, cfa

from cfa_index import (
    Backbone,
    Event,
    ModelBundle,
    Scorer,
    StageAdvanced,
    current_generation,
    score_folder,
)

EPOCHS = 4


def in_a_process(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own after `body` has changed something in it."""
    code = textwrap.dedent(body) + "\nimport sys\nfrom cfa_index_cli.main import run\nrun()\n"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **made_up.ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=120,
    )


def forbid(*args: object, **kwargs: object) -> Any:
    raise AssertionError("this must not be called")


def interrupt(*args: object, **kwargs: object) -> Any:
    raise KeyboardInterrupt


def model_files(place: Workplace, generation: str = "0001") -> dict[str, str]:
    """Checksums of a generation's files; its manifest holds the time of day and is left out."""
    files = made_up.tree(place.models / "weave" / "generations" / generation)
    return {
        name: checksum for name, checksum in files.items() if name not in ("manifest.json", "train_log.csv")
    }


# ---------------------------------------------------------------------------------------- build


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A category of four shards, built in one go."""
    return made_up.built_workplace(tmp_path_factory.mktemp("unbroken"), train=50)


def test_a_killed_build_goes_on_to_the_same_model(unbroken: Workplace, tmp_path: Path) -> None:
    """Killed in the third of four shards, when its features are written and its record is not."""
    place = made_up.workplace(tmp_path, train=50)
    body = """
        import os, signal
        from cfa_index.store import writer
        real, calls = writer.write_bytes, []
        def killing(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*arguments)
        writer.write_bytes = killing
    """
    command = ("build", "-c", "weave", *place.everything, *made_up.QUICK)
    assert in_a_process(body, *command).returncode == -signal.SIGKILL
    assert not (place.models / "weave").exists()
    store = next((place.features / "weave").iterdir())
    records = {path.name: path.stat().st_mtime_ns for path in (store / "records").iterdir()}
    assert sorted(records) == ["00000.json", "00001.json"]

    resumed = place.build()
    assert resumed.code == 0, resumed
    assert "features: 18 images" in resumed.err
    assert {name: (store / "records" / name).stat().st_mtime_ns for name in records} == records
    assert model_files(place) == model_files(unbroken)
    vectors = place.models / "weave" / "generations" / "0001" / "vectors.npy"
    assert np.load(vectors).shape == (32, 64 + 128)
    assert not made_up.leftovers(tmp_path)


@pytest.mark.parametrize(
    "name", ["_stamp_all", "write_shard", "finish", "compress_store", "write_generation"]
)
def test_a_build_that_is_interrupted_anywhere_goes_on_to_the_same_model(
    unbroken: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before the store, in it, when it is done, after it, and on the last write."""
    from cfa_index import StoreWriter
    from cfa_index.workflows import build, extract, start

    place = made_up.workplace(tmp_path, train=50)
    owners: dict[str, Any] = {
        "_stamp_all": extract,
        "write_shard": StoreWriter,
        "finish": StoreWriter,
        "compress_store": start,
    }
    with monkeypatch.context() as patched:
        patched.setattr(owners.get(name, build), name, interrupt)
        assert place.build().code == 130
    assert not made_up.leftovers(tmp_path)
    assert not (place.models / "weave" / "current").exists()
    assert place.build().code == 0
    assert model_files(place) == model_files(unbroken)


def test_a_second_build_computes_no_features_and_makes_the_same_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = made_up.built_workplace(tmp_path, train=18)
    with monkeypatch.context() as patched:
        patched.setattr(Backbone, "pyramid", forbid)
        assert place.build("--held-out", "0").code == 0
    bundle = ModelBundle.load(place.models / "weave")
    assert (bundle.manifest.generation, bundle.threshold) == ("0002", None)
    assert place.build().code == 0
    assert model_files(place, "0003") == model_files(place, "0001")


def test_new_changed_and_removed_images_are_noticed(tmp_path: Path) -> None:
    place = made_up.built_workplace(tmp_path, train=36)
    good = place.data / "weave" / "train" / "good"
    first = model_files(place)

    made_up.write_good(good, 1, first=900)
    added = place.build("--json", "-")
    assert added.document["images"] == 37
    assert "features: 5 images" in added.err  # the last shard only
    assert model_files(place, "0002") != first

    made_up.write_image(good / "003.png", made_up.texture(555))
    changed = place.build()
    assert "features: 16 images" in changed.err  # the first shard only

    (good / "900.png").unlink()
    made_up.write_image(good / "003.png", made_up.texture(3))
    assert place.build("--json", "-").document["images"] == 36
    assert model_files(place, "0004") == first


def test_images_of_mixed_sizes_and_modes_are_one_category(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=6)
    good = place.data / "weave" / "train" / "good"
    made_up.write_image(good / "wide.png", made_up.texture(30, width=200, height=90))
    made_up.write_image(good / "tiny.png", made_up.texture(31, width=5, height=9))
    made_up.write_image(good / "grey.png", made_up.texture(32)[:, :, 0])
    outcome = place.build("--json", "-")
    assert outcome.code == 0, outcome
    assert outcome.document["images"] == 9
    for source in ModelBundle.load(place.models / "weave").sources:
        assert source.box[2] <= 200
        assert source.box[3] <= 90


def test_broken_images_are_named_and_the_rest_is_built(tmp_path: Path) -> None:
    """And the model is that of the readable images, wherever the broken ones stand among them."""
    clean = made_up.built_workplace(tmp_path / "clean", train=20)
    place = made_up.workplace(tmp_path / "mixed", train=20)
    names = made_up.write_broken(place.data / "weave" / "train" / "good")
    outcome = place.build("--held-out", "0", "--json", "-")
    assert outcome.code == 3, outcome
    assert (outcome.document["images"], outcome.document["images_rejected"]) == (20, 5)
    for name in names:
        assert f"/{name}" in outcome.err, name
    assert "Traceback" not in outcome.err
    assert clean.build("--held-out", "0").code == 0
    assert model_files(place)["vectors.npy"] == model_files(clean, "0002")["vectors.npy"]


# ---------------------------------------------------------------------------------------- train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A category whose generation 0002 was trained in one go."""
    place = made_up.built_workplace(tmp_path_factory.mktemp("trained"))
    outcome = cfa("train", "-c", "weave", *place.stores, "--epochs", str(EPOCHS))
    assert outcome.code == 0, outcome
    return place


def built_copy(place: Workplace, root: Path) -> Workplace:
    """The workplace as it was before the training; the store's name depends on the data's path, so that stays."""
    shutil.copytree(
        place.models / "weave" / "generations" / "0001", root / "models" / "weave" / "generations" / "0001"
    )
    from cfa_index.bundle import set_current

    set_current(root / "models" / "weave", "0001")
    return Workplace(root=root)


def test_a_training_killed_after_an_epoch_goes_on_to_the_same_weights(
    trained: Workplace, tmp_path: Path
) -> None:
    place = built_copy(trained, tmp_path)
    body = """
        import os, signal
        from cfa_index.workflows import train
        real, done = train.write_checkpoint, []
        def killing(*arguments):
            real(*arguments)
            done.append(1)
            if len(done) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        train.write_checkpoint = killing
    """
    command = ("train", "-c", "weave", *place.model, "--features-dir", str(trained.features))
    command = (*command, "--epochs", str(EPOCHS))
    assert in_a_process(body, *command).returncode == -signal.SIGKILL
    assert (place.models / "weave" / "checkpoint" / "state.safetensors").is_file()
    assert current_generation(place.models / "weave").name == "0001"

    resumed = cfa(*command, "--json", "-")
    assert resumed.code == 0, resumed
    assert "training: 8 steps" in resumed.err  # 2 of 4 epochs, 16 images in batches of 4
    assert [row["epoch"] for row in resumed.document["epochs"]] == [1, 2, 3, 4]
    assert model_files(place, "0002") == model_files(trained, "0002")
    assert not (place.models / "weave" / "checkpoint").exists()
    assert not made_up.leftovers(tmp_path)


@pytest.mark.parametrize("name", ["step", "score_held_out", "write_generation"])
def test_a_training_that_fails_anywhere_goes_on_to_the_same_weights(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In the middle of an epoch, after the last one, and on the last write."""
    from cfa_index.workflows import train, trainer

    place = built_copy(trained, tmp_path)
    calls: list[int] = []
    owner: Any = trainer.Trainer if name == "step" else train
    real: Callable[..., Any] = getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (7 if name == "step" else 1):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    command = (
        "train",
        "-c",
        "weave",
        *place.model,
        "--features-dir",
        trained.features,
        "--epochs",
        str(EPOCHS),
    )
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing)
        assert cfa(*command).code == 130
    assert cfa(*command).code == 0
    assert model_files(place, "0002") == model_files(trained, "0002")


def test_a_checkpoint_of_another_training_is_not_taken(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfa_index.workflows import train

    place = built_copy(trained, tmp_path)
    command = ("train", "-c", "weave", *place.model, "--features-dir", trained.features)
    with monkeypatch.context() as patched:
        patched.setattr(train, "score_held_out", interrupt)
        assert cfa(*command, "--epochs", str(EPOCHS), "--seed", "5").code == 130
    outcome = cfa(*command, "--epochs", str(EPOCHS))
    assert outcome.code == 0, outcome
    assert model_files(place, "0002") == model_files(trained, "0002")


def test_training_never_runs_the_backbone(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = built_copy(trained, tmp_path)
    for method in ("levels", "pyramid", "forward", "__call__"):
        monkeypatch.setattr(Backbone, method, forbid)
    command = ("train", "-c", "weave", *place.model, "--features-dir", trained.features, "--epochs", "1")
    outcome = cfa(*command)
    assert outcome.code == 0, outcome


def test_what_a_training_leaves(trained: Workplace) -> None:
    bundle = ModelBundle.load(trained.models / "weave")
    manifest = bundle.manifest
    assert (manifest.generation, manifest.parent, manifest.action) == ("0002", "0001", "train")
    assert manifest.radius > 0
    assert len(manifest.held_out.uris) == 4
    before, after = model_files(trained, "0001"), model_files(trained, "0002")
    assert before["vectors.npy"] == after["vectors.npy"]
    assert before["descriptor.safetensors"] != after["descriptor.safetensors"]
    with (bundle.path / "train_log.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["epoch"] for row in rows] == [str(epoch + 1) for epoch in range(EPOCHS)]
    assert not np.array_equal(bundle.descriptor.weight.detach(), bundle.initial_descriptor.weight.detach())
    first = ModelBundle.load(trained.models / "weave" / "generations" / "0001")
    assert np.array_equal(first.descriptor.weight.detach(), bundle.initial_descriptor.weight.detach())


def test_a_store_filled_again_since_the_build_is_refused(tmp_path: Path) -> None:
    place = made_up.built_workplace(tmp_path, train=8)
    made_up.write_good(place.data / "weave" / "train" / "good", 1, first=900)
    other = Workplace(root=tmp_path / "other")
    built = cfa(
        *("build", "-c", "weave", "--data-root", place.data, "--models-dir", other.models),
        *("--features-dir", place.features, *made_up.QUICK),
    )
    assert built.code == 0, built
    line = cfa("train", "-c", "weave", *place.stores).error_line
    assert "run build again, then train" in line
    assert not (place.models / "weave" / "generations" / "0002").exists()


# ---------------------------------------------------------------------------------------- score

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
    rows = pq.read_table(target / "parts" / "part-00000.parquet").to_pylist()
    assert {row["uri"].rpartition("/")[2] for row in rows if not row["error"]} == set(ODD_NAMES)
    assert [row["image_id"] for row in rows] == list(range(len(rows)))
    with (target / "scores.csv").open(newline="", encoding="utf-8") as handle:
        read = list(csv.DictReader(handle))
    assert len(read) == len(rows)
    for text, row in zip(read, rows, strict=True):
        assert text == {name: "" if value is None else str(value) for name, value in row.items()}
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
    from cfa_index.workflows import score

    monkeypatch.setattr(score, "_SHARD_IMAGES", 4)
    folder = made_up.write_good(tmp_path / "in", 10)
    (folder / "empty.png").write_bytes(b"")
    command = ("score", folder, "-c", "weave", *trained.model, "-o", tmp_path / "out", "--json", "-")
    real, calls = Scorer.score_pixels, []

    def counted(self: Scorer, *args: Any) -> Any:
        calls.append(len(args[0]))
        if sum(calls) > 8 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Scorer, "score_pixels", counted)
    assert cfa(*command).code == 130  # in the third part
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 2
    assert not (tmp_path / "out" / "scores.csv").exists()
    (tmp_path / "again").touch()
    calls.clear()
    resumed = cfa(*command)
    assert resumed.code == 3, resumed
    assert sum(calls) == 2
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
    part = tmp_path / "out" / "parts" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:500])
    again = cfa(*command)
    assert (again.code, again.document["resumed"]) == (0, 0)
    assert made_up.tree(tmp_path / "out") == before


@pytest.fixture
def scoring(
    trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, Callable[[], Any]]:
    """A folder of 10 images, a target, and a run over it in parts of 4 that gives its report's document."""
    from cfa_index.workflows import score

    monkeypatch.setattr(score, "_SHARD_IMAGES", 4)
    folder, target = made_up.write_good(tmp_path / "in", 10), tmp_path / "out"
    command = ("score", folder, "-c", "weave", *trained.model, "-o", target, "--heatmaps", "--json", "-")
    return folder, target, lambda: cfa(*command).document


def heatmap_ids(target: Path) -> list[int]:
    return sorted(int(path.name.partition("_")[0]) for path in (target / "heatmaps").iterdir())


def test_a_replaced_or_repaired_image_is_scored_again(scoring: tuple[Path, Path, Callable[[], Any]]) -> None:
    folder, target, run = scoring
    (folder / "005.png").write_bytes(b"")
    assert run()["rejected"] == 1
    made_up.write_image(folder / "005.png", made_up.texture(5))
    repaired = run()
    assert (repaired["rejected"], repaired["resumed"]) == (0, 6)
    assert heatmap_ids(target) == list(range(10))
    # Of the same size, so that the time alone tells.
    image = folder / "000.png"
    image.write_bytes(image.read_bytes())
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    assert run()["resumed"] == 6
    assert run()["resumed"] == 10


def test_what_is_left_of_images_that_are_gone_is_deleted(
    scoring: tuple[Path, Path, Callable[[], Any]],
) -> None:
    folder, target, run = scoring
    run()
    assert heatmap_ids(target) == list(range(10))
    for number in (1, 5, 6, 7, 8, 9):
        (folder / f"{number:03d}.png").unlink()
    left = run()
    assert (left["images"], left["resumed"]) == (4, 0)
    assert [path.name for path in (target / "parts").iterdir()] == ["part-00000.parquet"]
    assert sorted(path.name[9:] for path in (target / "heatmaps").iterdir()) == [
        f"{number:03d}.png" for number in (0, 2, 3, 4)
    ]
    assert heatmap_ids(target) == [0, 1, 2, 3]
    assert len(pq.read_table(target / "parts")) == 4


def test_an_image_that_vanishes_after_it_was_scored_has_no_heatmap(
    scoring: tuple[Path, Path, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target, run = scoring
    real = Scorer.score_pixels

    def vanishing(self: Scorer, *args: Any) -> Any:
        (folder / "002.png").unlink(missing_ok=True)
        return real(self, *args)

    monkeypatch.setattr(Scorer, "score_pixels", vanishing)
    assert {key: value for key, value in run().items() if key in ("images", "rejected")} == {
        "images": 10,
        "rejected": 0,
    }
    assert heatmap_ids(target) == [0, 1, 3, 4, 5, 6, 7, 8, 9]


def test_progress_of_scoring_comes_with_every_batch(trained: Workplace, tmp_path: Path) -> None:
    folder = made_up.write_good(tmp_path / "in", 5)
    (folder / "001.png").write_bytes(b"")
    bundle = ModelBundle.load(trained.models / "weave")
    for steps in ([(2, 1), (2, 1), (1, 1)], [(5, 1)]):
        events: list[Event] = []
        score_folder(bundle, folder, tmp_path / "out", batch_size=2, listener=events.append)
        seen = [(e.steps, e.fields["errors"]) for e in events if isinstance(e, StageAdvanced)]
        assert seen == steps


def test_masks_without_a_defect_pixel_are_a_reason(trained: Workplace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(trained.data, root)
    for mask in (root / "weave" / "ground_truth" / "hole").iterdir():
        made_up.write_image(mask, np.zeros((made_up.SIDE_PX, made_up.SIDE_PX), np.uint8))
    outcome = cfa("evaluate", "-c", "weave", "--data-root", root, *trained.model, "--json", "-")
    assert outcome.code == 0, outcome
    assert outcome.document["masks"] == "no defect pixel in any mask"
    assert (outcome.document["pixel_auroc"], outcome.document["aupro"]) == (None, None)
    assert "no pixel metrics, no defect pixel in any mask" in outcome.err


def test_a_broken_mask_is_one_line(trained: Workplace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(trained.data, root)
    mask = root / "weave" / "ground_truth" / "hole" / "001_mask.png"
    mask.write_bytes(b"")
    outcome = cfa("evaluate", "-c", "weave", "--data-root", root, *trained.model)
    assert "001_mask.png" in outcome.error_line
    assert outcome.err.count("001_mask.png") == 1
    mask.unlink()
    without = cfa("evaluate", "-c", "weave", "--data-root", root, *trained.model, "--json", "-")
    assert without.code == 0, without
    assert without.document["masks"] == "1 defect images have no mask"
    assert without.document["pixel_auroc"] is None


def test_broken_test_images_are_rows(trained: Workplace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(trained.data, root)
    (root / "weave" / "test" / "good" / "zz.png").write_bytes(b"")
    outcome = cfa("evaluate", "-c", "weave", "--data-root", root, *trained.model, "--json", "-")
    assert outcome.code == 3, outcome
    assert outcome.document["images_rejected"] == 1
    row = next(row for row in outcome.document["images"] if row["error"])
    assert row["uri"] == "test/good/zz.png"
    assert row["score"] is None
    assert json.dumps(outcome.document, allow_nan=False)
