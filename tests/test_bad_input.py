"""What a command does with what it should not have been given: one line, exit code 1, nothing half-written."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from disks import fill, small_disk
from made_up import QUICK, Workplace, cfa
from vectors import clustered

from cfa_index import IndexState, ModelBundle, OutputError, Scorer, SearchIndex, build_faiss, load_backbone

OPTIONS = ("--backbone", "resnet18", "--strides", "4,8", "--size", "64", "--bank-size", "32")
"""`QUICK` without its weights."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A built category that no test of this file changes."""
    return made_up.built_workplace(tmp_path_factory.mktemp("place"))


@pytest.fixture
def fresh(tmp_path: Path) -> Workplace:
    """A category that is not built yet."""
    return made_up.workplace(tmp_path, train=6, test=1)


def assert_nothing_written(place: Workplace) -> None:
    assert not place.models.exists() or not made_up.tree(place.models)
    assert not made_up.leftovers(place.root)


# ----------------------------------------------------------------------------------------- images


def test_an_empty_folder(tmp_path: Path, place: Workplace) -> None:
    (tmp_path / "empty").mkdir()
    new = Workplace(root=tmp_path)
    line = cfa("build", "--normals", tmp_path / "empty", *new.stores, *QUICK).error_line
    assert "an empty folder" in line
    score = ("score", tmp_path / "empty", "-c", "weave", *place.model, "-o", tmp_path / "out")
    assert "expected images in" in cfa(*score).error_line
    assert not (tmp_path / "out").exists()
    assert_nothing_written(new)


def test_a_folder_that_is_not_there(tmp_path: Path, place: Workplace) -> None:
    nowhere = tmp_path / "nowhere"
    new = Workplace(root=tmp_path)
    assert str(nowhere) in cfa("build", "--normals", nowhere, *new.stores, *QUICK).error_line
    assert str(nowhere) in cfa("build", "-c", "all", "--data-root", nowhere, *new.stores, *QUICK).error_line
    score = ("score", nowhere, "-c", "weave", *place.model, "-o", tmp_path / "out")
    assert str(nowhere) in cfa(*score).error_line
    assert "nowhere.png" in cfa("query", tmp_path / "nowhere.png", "-c", "weave", *place.model).error_line
    assert not (tmp_path / "out").exists()
    assert_nothing_written(new)


def test_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    line = cfa("build", "--normals", tmp_path, *Workplace(root=tmp_path).stores, *QUICK).error_line
    assert "none, but 1 other files (.txt)" in line


def test_a_category_that_does_not_exist(fresh: Workplace) -> None:
    for command in ("build", "evaluate"):
        more = (
            (*fresh.everything, *QUICK) if command == "build" else ("--data-root", fresh.data, *fresh.model)
        )
        line = cfa(command, "-c", "wave", *more).error_line
        assert "category 'wave'" in line
        assert "only 'weave'" in line
    assert "no file named current" in cfa("query", "x.png", "-c", "wave", *fresh.model).error_line
    for name in ("..", "a/b", "/etc", ""):
        assert fresh.build(category=name).error_line
    assert_nothing_written(fresh)


def test_a_name_from_the_command_line_stays_below_the_models_folder(fresh: Workplace) -> None:
    good = fresh.data / "weave" / "train" / "good"
    for name in ("..", "../outside", str(fresh.root / "outside"), "."):
        line = cfa("build", "--normals", good, "-c", name, *fresh.stores, *QUICK).error_line
        assert "category" in line
    assert sorted(path.name for path in fresh.root.iterdir()) == ["data"]


def test_no_good_images(fresh: Workplace) -> None:
    shutil.rmtree(fresh.data / "weave" / "train" / "good")
    assert "expected good images in" in fresh.build().error_line
    (fresh.data / "weave" / "train" / "good").mkdir()
    assert "an empty folder" in fresh.build().error_line
    assert_nothing_written(fresh)


def test_no_test_images(place: Workplace, tmp_path: Path) -> None:
    shutil.copytree(place.data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "weave" / "test")
    evaluate = ("evaluate", "-c", "weave", "--data-root", tmp_path / "data", *place.model)
    assert "no such folder" in cfa(*evaluate).error_line


BROKEN = ("cut.png", "empty.png", "words.png", "huge.png", "folder.png")


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_used_as_the_only_one(tmp_path: Path, place: Workplace, name: str) -> None:
    """Building refuses; scoring gives a row; a query refuses."""
    made_up.write_broken(tmp_path / "all")
    folder = tmp_path / "one"
    folder.mkdir()
    (tmp_path / "all" / name).rename(folder / name)
    new = Workplace(root=tmp_path)
    line = cfa("build", "--normals", folder, *new.stores, *QUICK).error_line
    assert "at least one readable image among 1" in line
    assert name in line
    assert_nothing_written(new)
    scored = cfa("score", folder, "-c", "weave", *place.model, "-o", tmp_path / "out", "--json", "-")
    assert scored.code == 3, scored
    assert scored.document["rejected"] == 1
    assert name in cfa("query", folder / name, "-c", "weave", *place.model, "-o", tmp_path / "q").error_line
    assert not (tmp_path / "q").exists()


def test_a_test_split_of_broken_images_only(place: Workplace, tmp_path: Path) -> None:
    made_up.write_broken(tmp_path / "weave" / "test" / "good")
    line = cfa("evaluate", "-c", "weave", "--data-root", tmp_path, *place.model).error_line
    assert "at least one readable test image" in line


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bank-size", "2"), "neighbors (K) to be at most the bank's 2 memories, got 3"),
        (("--neighbors", "33"), "neighbors (K) to be at most the bank's 32 memories, got 33"),
        (("--bank-size", "1300"), "at most 1280 memories (5 images of 256 patches), got 1300"),
        (("--bank-size", "300", "--method", "ema"), "at most h*w = 256, got 300"),
        (("--bank-size", "300", "--method", "mean"), "at most h*w = 256, got 300"),
        (("--bank-size", "1300", "--method", "coreset"), "at most 1280 memories"),
        (("--bank-size", "0"), "bank size to be 1 or more, got 0"),
        (("--gamma-d", "2"), "gamma_d to be a ratio in (0, 1], got 2.0"),
        (("--size", "100"), "a multiple of 16"),
        (("--strides", "8,4"), "ascending"),
        (("--held-out", "1"), "a share in [0, 1)"),
        (("--held-out", "-0.1"), "a share in [0, 1)"),
        (("--false-alarm-rate", "0"), "between 0 and 1"),
        (("--init", "identity", "--gamma-d", "1/2"), "init 'identity'"),
        (("--backbone", "alexnet"), "resnet18"),
        (("--device", "tpu"), "auto, cpu, cuda, cuda:N"),
        (("--device", "cuda:99"), "a CUDA device 99"),
    ],
)
def test_settings_that_cannot_be(fresh: Workplace, options: tuple[str, ...], says: str) -> None:
    assert says in fresh.build(*options).error_line
    assert_nothing_written(fresh)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bank-share", "0"), "share of the patches to be in (0, 1], got 0.0"),
        (("--bank-share", "2"), "write 1/100 or 0.01 for one per cent"),
        (("--bank-share", "1/2", "--method", "mean"), "at most h*w = 256, got 640"),
        (("--bank-share", "1/1000"), "at most the bank's 1 memories, got 3"),
    ],
)
def test_shares_that_cannot_be(fresh: Workplace, options: tuple[str, ...], says: str) -> None:
    quick = QUICK[:-2]  # without --bank-size
    assert says in cfa("build", "-c", "weave", *fresh.everything, *quick, *options).error_line
    assert_nothing_written(fresh)


@pytest.mark.parametrize(
    "ratio", ["1e400", "1e999999999", "1/0", "nan", "inf", "", "1/1000000000", "9" * 5000]
)
def test_a_ratio_that_cannot_be(fresh: Workplace, ratio: str) -> None:
    for option in ("--gamma-d", "--gamma-c", "--bank-share", "--held-out", "--false-alarm-rate"):
        assert cfa("build", "-c", "weave", *fresh.everything, *QUICK[:-2], option, ratio).code == 2, option
    assert_nothing_written(fresh)


@pytest.mark.parametrize("option", ["--strides", "--gamma-d", "--held-out"])
def test_an_empty_value_is_not_the_default(fresh: Workplace, option: str) -> None:
    assert fresh.build(option, "").code == 2
    assert_nothing_written(fresh)


def test_empty_names(fresh: Workplace) -> None:
    good = fresh.data / "weave" / "train" / "good"
    assert "category" in cfa("build", "--normals", good, "-c", "", *fresh.stores, *QUICK).error_line
    assert "got a folder" in fresh.build("--weights", "").error_line
    assert cfa("train", "-c", "weave", *fresh.stores, "--radius", "").code == 2
    assert_nothing_written(fresh)


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which cannot be had without a device."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 3.00 GiB"),
        OutOfMemoryError("HIP ran out"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory:\n you tried"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_that_runs_out_is_one_line(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*args: object) -> None:
        raise error

    monkeypatch.setattr(Scorer, "score_pixels", failing)
    score = ("score", place.data / "weave" / "test", "-c", "weave", *place.model, "-o", tmp_path / "out")
    line = cfa(*score).error_line
    assert line.startswith("cfa-index: expected enough memory, got ")
    assert line.endswith("; give a smaller --batch-size or --size")


def test_a_bug_is_not_taken_for_an_error_of_the_user(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Scorer, "score_pixels", failing)
    score = ("score", place.data / "weave" / "test", "-c", "weave", *place.model, "-o", tmp_path / "out")
    with pytest.raises(RuntimeError, match="shapes differ"):
        cfa(*score)


@pytest.mark.parametrize("threshold", ["nan", "inf"])
def test_a_threshold_that_cannot_be(place: Workplace, tmp_path: Path, threshold: str) -> None:
    image = place.data / "weave" / "test" / "hole" / "000.png"
    common = ("-c", "weave", *place.model, "-o", tmp_path / "out", "--threshold", threshold)
    for command, source in (("query", image), ("score", image.parent)):
        assert "threshold to be a finite number" in cfa(command, source, *common).error_line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["-1", "1000000001", str(2**64), "one"])
def test_a_seed_that_cannot_be(fresh: Workplace, seed: str) -> None:
    assert fresh.build("--seed", seed).code == 2
    assert cfa("train", "-c", "weave", *fresh.stores, "--seed", seed).code == 2
    assert_nothing_written(fresh)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--attract", "20", "--repel", "20"), "at most the bank's 32 memories, got 20 + 20"),
        (("--attract", "0"), "attract (K)"),
        (("--repel", "-1"), "repel (J)"),
        (("--learning-rate", "0"), "learning_rate"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--radius", "-1"), "radius"),
        (("--radius", "nan"), "radius"),
        (("--margin", "nan"), "margin"),
    ],
)
def test_settings_of_a_training_that_cannot_be(place: Workplace, options: tuple[str, ...], says: str) -> None:
    before = made_up.tree(place.models)
    assert says in cfa("train", "-c", "weave", *place.stores, *options).error_line
    assert made_up.tree(place.models) == before


def test_training_without_its_store(place: Workplace, tmp_path: Path) -> None:
    line = cfa("train", "-c", "weave", *place.model, "--features-dir", tmp_path / "elsewhere").error_line
    assert "run build again" in line
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_store_is_noticed_by_training(place: Workplace, tmp_path: Path) -> None:
    features = shutil.copytree(place.features, tmp_path / "features")
    shard = next(path for path in sorted(features.rglob("0")) if path.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = cfa("train", "-c", "weave", *place.model, "--features-dir", features).error_line
    assert "as it was written" in line


# ----------------------------------------------------------------------------------------- weights


class Payload:
    """Unpickling it writes a file: what a hostile weights file would do."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sentinel,))


def test_a_pickle_among_the_weights_is_never_executed(fresh: Workplace) -> None:
    sentinel = fresh.root / "executed"
    hostile = Payload(sentinel)
    pickle.loads(pickle.dumps(hostile))
    assert sentinel.exists()  # it does work
    sentinel.unlink()
    for number, content in enumerate((hostile, {"state_dict": {"conv1.weight": hostile}})):
        file = fresh.root / f"w{number}.pth"
        torch.save(content, file)
        with_options = ("build", "-c", "weave", *fresh.everything, *OPTIONS)
        line = cfa(*with_options, "--weights", file).error_line
        assert "refused" in line
        file.write_bytes(pickle.dumps(content))
        assert cfa(*with_options, "--weights", file).error_line
        shutil.copy(file, file.with_suffix(".safetensors"))
        assert cfa(*with_options, "--weights", file.with_suffix(".safetensors")).error_line
    assert not sentinel.exists()
    assert_nothing_written(fresh)


def test_a_pickle_among_the_files_of_a_model_is_never_executed(place: Workplace, tmp_path: Path) -> None:
    """Even with every checksum made right: numpy, safetensors and Parquet all refuse it."""
    import json

    from cfa_index.bundle import set_current
    from cfa_index.files import seal, sha256_of_file

    sentinel = tmp_path / "executed"
    for name in ("vectors.npy", "descriptor.safetensors", "backbone.safetensors", "sources.parquet"):
        model = shutil.copytree(place.models / "weave", tmp_path / name / "weave")
        folder = model / "generations" / "0001"
        (folder / name).write_bytes(pickle.dumps(Payload(sentinel)))
        document = json.loads((folder / "manifest.json").read_text())
        del document["sha256"]
        document["files"][name] = sha256_of_file(folder / name)
        (folder / "manifest.json").write_text(json.dumps(seal(document)))
        set_current(model, "0001")
        image = place.data / "weave" / "test" / "hole" / "000.png"
        query = ("query", image, "-c", "weave", "--models-dir", tmp_path / name, "-o", tmp_path / "q")
        assert name in cfa(*query).error_line
    assert not sentinel.exists()


def test_weights_of_another_network(fresh: Workplace) -> None:
    file = fresh.root / "resnet18.pth"
    torch.save(load_backbone("resnet18", (4, 8), weights="random").state_tensors(), file)
    options = ("--backbone", "wide_resnet50_2", "--size", "64", "--bank-size", "32", "--weights", file)
    line = cfa("build", "-c", "weave", *fresh.everything, *options).error_line
    assert "weights of wide_resnet50_2" in line
    assert_nothing_written(fresh)


@pytest.mark.parametrize("content", [b"", b"words", None])
def test_a_weights_file_that_is_none(fresh: Workplace, content: bytes | None) -> None:
    for name in ("w.pth", "w.safetensors"):
        if content is not None:
            (fresh.root / name).write_bytes(content)
        with_options = ("build", "-c", "weave", *fresh.everything, *OPTIONS)
        assert name in cfa(*with_options, "--weights", fresh.root / name).error_line
    assert cfa(*with_options, "--weights", fresh.root).error_line  # a folder
    assert_nothing_written(fresh)


def offline(*args: object, **kwargs: object) -> None:
    raise urllib.error.URLError("no network")


def test_no_weights_and_no_network(fresh: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says which file, where it is looked for, and how to hand it over; never random weights."""

    monkeypatch.setenv("TORCH_HOME", str(fresh.root / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for backbone in ("resnet18", "wide_resnet50_2"):
        line = cfa("build", "-c", "weave", *fresh.everything, "--backbone", backbone).error_line
        assert f"the weights of {backbone}, {backbone}-" in line
        assert str(fresh.root / "cache") in line
        assert "--weights FILE" in line
    assert not (fresh.root / "cache").exists()
    assert_nothing_written(fresh)


def test_a_model_without_weights_and_without_a_file(
    fresh: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    weights = fresh.root / "w.safetensors"
    save_file(load_backbone("resnet18", (4, 8), weights="random").state_tensors(), weights)
    command = (
        "build",
        "-c",
        "weave",
        *fresh.everything,
        *OPTIONS,
        "--weights",
        weights,
        "--no-embed-weights",
    )
    assert cfa(*command).code == 0
    monkeypatch.setenv("TORCH_HOME", str(fresh.root / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert "--weights FILE" in cfa("train", "-c", "weave", *fresh.stores).error_line


# -------------------------------------------------------------------------------------------- disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "16m") as folder:
        yield folder


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def says_where(line: str, disk: Path, why: str) -> bool:
    return f"expected to write {disk}" in line and why in line and "free some space" in line


@pytest.mark.parametrize("leave", [0, 8_192, 300_000, 1_500_000])
def test_inverted_lists_on_a_full_disk(disk: Path, leave: int) -> None:
    """In the first shard, in a later one, in the merged file: nothing of any stays."""
    fill(disk, leave=leave)
    with pytest.raises(OutputError) as caught:
        build_faiss(clustered(10_000, 24), "IVF16,Flat", seed=0, budget_bytes=200_000, scratch_dir=disk)
    assert says_where(str(caught.value), disk, "No space left on device"), caught.value
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW16,Flat"])
def test_an_index_that_does_not_fit_its_disk(disk: Path, factory: str) -> None:
    built = build_faiss(clustered(10_000, 24), factory, seed=0)
    index = SearchIndex(
        built,
        IndexState(parameters={}, k=1, queries=0, resident_bytes=0, latency_ms=0.0),
    )
    fill(disk, leave=300_000)
    with pytest.raises(OSError, match="No space left on device"):
        index.write(disk / "index.faiss")


@pytest.mark.parametrize("leave", [0, 8_192, 40_000, 300_000])
def test_a_build_on_a_full_disk(disk: Path, leave: int) -> None:
    """At the first write, in a record, in a shard, in the model: the next build makes good."""
    made_up.write_category(disk / "data", train=20, test=1)
    full = Workplace(root=disk)
    fill(disk, leave=leave)
    line = full.build().error_line
    assert says_where(line, disk, "No space left on device"), line
    assert not made_up.leftovers(disk)
    assert not (disk / "models" / "weave" / "current").exists()
    (disk / "filler").unlink()
    assert full.build().code == 0


@pytest.mark.parametrize("leave", [0, 20_000, 200_000, 2_000_000])
def test_a_second_build_on_a_full_disk_leaves_the_first_model(disk: Path, leave: int) -> None:
    full = made_up.built_workplace(disk, test=1)
    before = made_up.tree(disk)
    fill(disk, leave=leave)
    line = full.build("--held-out", "1/4").error_line
    assert says_where(line, disk, "No space left on device"), line
    (disk / "filler").unlink()
    after = made_up.tree(disk)
    lost = {name for name, checksum in before.items() if after.get(name) != checksum}
    assert {name.rpartition("/")[2] for name in lost} <= {"store.json", "images.parquet"}, lost
    assert not after.keys() - before.keys()
    assert not made_up.leftovers(disk)
    assert ModelBundle.load(full.models / "weave").manifest.generation == "0001"
    assert full.build("--held-out", "1/4").code == 0


@pytest.mark.parametrize("leave", [0, 100_000, 1_500_000])
def test_a_training_on_a_full_disk_leaves_the_model_of_before(disk: Path, leave: int) -> None:
    """In the checkpoint, or in the new generation."""
    full = made_up.built_workplace(disk, test=1)
    before = made_up.tree(disk / "models")
    fill(disk, leave=leave)
    line = cfa("train", "-c", "weave", *full.stores).error_line
    assert says_where(line, disk, "No space left on device"), line
    after = made_up.tree(disk / "models")
    assert {name: after[name] for name in after if "checkpoint/" not in name} == before
    assert not made_up.leftovers(disk)
    assert ModelBundle.load(full.models / "weave").manifest.generation == "0001"
    (disk / "filler").unlink()
    assert cfa("train", "-c", "weave", *full.stores).code == 0


@pytest.mark.parametrize("leave", [0, 4_096, 12_288, 40_000])
def test_scoring_onto_a_full_disk(place: Workplace, disk: Path, leave: int) -> None:
    fill(disk, leave=leave)
    command = ("score", place.data / "weave" / "test", "-c", "weave", *place.model, "-o", disk / "out")
    line = cfa(*command, "--heatmaps").error_line
    assert says_where(line, disk, "No space left on device"), line
    assert not made_up.leftovers(disk)
    assert not (disk / "out" / "scores.csv").exists()
    (disk / "filler").unlink()
    assert cfa(*command, "--heatmaps").code == 0


def test_other_output_on_a_full_disk(place: Workplace, disk: Path) -> None:
    fill(disk, leave=0)
    image = place.data / "weave" / "test" / "hole" / "000.png"
    query = ("query", image, "-c", "weave", *place.model)
    line = cfa(*query, "-o", disk / "query").error_line
    assert says_where(line, disk, "No space left on device"), line
    evaluate = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    assert says_where(cfa(*evaluate, "--json", disk / "a.json").error_line, disk, "No space left")
    assert str(disk) in cfa(*evaluate, "--events", disk / "events").error_line
    demo = ("demo", "--images", "16", "-o", disk / "demo")
    assert says_where(cfa(*demo).error_line, disk, "No space left on device")
    assert not made_up.leftovers(disk)


def test_full_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `--json - > /full/disk/file`; Python's own flush at the end must not fail again."""
    from cfa_index_cli.console import write_document

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OutputError, match="to write standard output, got No space left on device"):
            write_document(Path("-"), {"score": 1})


def test_names_that_no_disk_takes(place: Workplace, tmp_path: Path) -> None:
    long = "x" * 300
    image = place.data / "weave" / "test" / "hole" / "000.png"
    assert "File name too long" in cfa("query", image, "-c", long, *place.model).error_line
    assert cfa("query", tmp_path / f"{long}.png", "-c", "weave", *place.model).error_line
    good = place.data / "weave" / "train" / "good"
    stores = Workplace(root=tmp_path).stores
    assert "File name too long" in cfa("build", "--normals", good, "-c", long, *stores, *QUICK).error_line
    score = ("score", image.parent, "-c", "weave", *place.model, "-o", tmp_path / long)
    assert "File name too long" in cfa(*score).error_line


def test_a_read_only_disk(place: Workplace, disk: Path, tmp_path: Path) -> None:
    """Everything that writes says so; everything that only reads works."""
    full = made_up.built_workplace(disk, test=1)
    before = made_up.tree(disk)
    make_read_only(disk)
    why = "Read-only file system"
    assert says_where(full.build().error_line, disk, why)
    fresh_features = ("--models-dir", disk / "other", "--features-dir", tmp_path / "features")
    line = cfa("build", "-c", "weave", "--data-root", full.data, *fresh_features, *QUICK).error_line
    assert says_where(line, disk, why)
    assert says_where(cfa("train", "-c", "weave", *full.stores).error_line, disk, why)
    images = full.data / "weave" / "test"
    score = ("score", images, "-c", "weave", *full.model)
    assert says_where(cfa(*score, "-o", disk / "out").error_line, disk, why)
    assert str(disk) in cfa(*score, "-o", tmp_path / "o", "--events", disk / "events").error_line
    assert cfa(*score, "-o", tmp_path / "out").code == 0
    assert cfa("evaluate", "-c", "weave", "--data-root", full.data, *full.model).code == 0
    assert made_up.tree(disk) == before
    assert not made_up.leftovers(disk)


def test_an_output_that_is_a_file(place: Workplace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    image = place.data / "weave" / "test" / "hole" / "000.png"
    assert cfa("query", image, "-c", "weave", *place.model, "-o", tmp_path / "file").error_line
    assert cfa("score", image.parent, "-c", "weave", *place.model, "-o", tmp_path / "file").error_line
    assert cfa("score", image.parent, "-c", "weave", *place.model, "-o", tmp_path / "file" / "out").error_line
    evaluate = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    assert cfa(*evaluate, "--json", tmp_path).error_line
    assert cfa(*evaluate, "--json", tmp_path / "file" / "x.json").error_line
    for models, features in ((tmp_path / "file", tmp_path / "f"), (tmp_path / "m", tmp_path / "file")):
        stores = ("--models-dir", models, "--features-dir", features)
        assert cfa("build", "-c", "weave", "--data-root", place.data, *stores, *QUICK).error_line
    assert cfa("query", image, "-c", "weave", "--models-dir", tmp_path / "file").error_line
    assert not made_up.leftovers(tmp_path)
