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
import pytest
from made_up import Workplace, cfa

from cfa_index import (
    Backbone,
    ModelBundle,
    current_generation,
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
    "name", ["_plan_rows", "write_shard", "finish", "compress_store", "write_generation"]
)
def test_a_build_that_is_interrupted_anywhere_goes_on_to_the_same_model(
    unbroken: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before the store, in it, when it is done, after it, and on the last write."""
    from cfa_index import StoreWriter
    from cfa_index.workflows import build, extract, start

    place = made_up.workplace(tmp_path, train=50)
    owners: dict[str, Any] = {
        "_plan_rows": extract,
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
