"""The target of batch scoring: whose it is, where it may lie, who works on it, and a disk that is full."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import batch
import made_up
import pytest
from batch import Job
from disks import fill, small_disk
from made_up import Workplace, cfa

from cfa_index import OutputError
from cfa_index.places import LocalPlace
from cfa_index.workflows.score_listing import read_shard
from cfa_index.workflows.score_parts import Parts

SMALL_SHARDS: tuple[object, ...] = ("--shard-images", 4, "--batch-size", 4, "--workers", 0, "--no-report")


def all_but_lock(folder: Path) -> dict[str, str]:
    """Its files but the lock, which every run signs."""
    return {name: checksum for name, checksum in made_up.tree(folder).items() if name != "lock"}


@pytest.fixture(scope="module")
def finished(scorable: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished run that no test changes."""
    root = tmp_path_factory.mktemp("finished")
    folder = batch.write_images(root / "in", 10)
    job = Job(place=scorable, folder=folder, out=root / "out", options=(*SMALL_SHARDS, "--threshold", "1.5"))
    outcome = job.run()
    assert outcome.code == 0, outcome
    return job


# -------------------------------------------------------------------------------- another run's


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--threshold", "2.5"), ("threshold", "1.5 then", "2.5 now")),
        (("--batch-size", "8"), ("batch_size", "4 then", "8 now")),
        (("--shard-images", "5"), ("shard_images", "4 then", "5 now")),
        (("--max-pixels", "1000000"), ("max_pixels", "1000000 now")),
        (("--heatmaps",), ("heatmaps", "False then", "True now")),
        (("--maps",), ("maps", "False then", "True now")),
        (("--precision", "bf16"), ("precision", "fp32", "bf16")),
        (("--threshold", "2.5", "--heatmaps"), ("threshold", "heatmaps", "1.5 then", "True now")),
    ],
    ids=lambda value: " ".join(value),
)
def test_another_setting_is_refused_and_named(
    finished: Job, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    before = all_but_lock(finished.out)
    line = finished.run(*options).error_line
    assert all(part in line for part in says), line
    assert all_but_lock(finished.out) == before


def test_the_same_settings_are_not(finished: Job) -> None:
    before = all_but_lock(finished.out)
    outcome = finished.run("--json", "-")
    assert (outcome.code, outcome.document["resumed"]) == (0, 10)
    assert all_but_lock(finished.out) == before


def test_another_folder_is_refused_and_named(finished: Job, tmp_path: Path) -> None:
    other = batch.write_images(tmp_path / "other", 2)
    before = all_but_lock(finished.out)
    line = replace(finished, folder=other).run().error_line
    assert all(part in line for part in ("folder", str(finished.folder), str(other))), line
    assert all_but_lock(finished.out) == before


def test_another_generation_is_refused_and_named(finished: Job, tmp_path: Path) -> None:
    place = made_up.copied(finished.place, tmp_path)
    trained = cfa("train", "-c", "weave", *place.stores)
    assert trained.code == 0, trained
    before = all_but_lock(finished.out)
    line = replace(finished, place=place).run().error_line
    run = json.loads((finished.out / "run.json").read_text())
    assert "model" in line
    assert run["model_sha"][:8] in line
    assert all_but_lock(finished.out) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": 1}', b"{}"])
def test_settings_that_cannot_be_read_are_another_runs(finished: Job, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    (tmp_path / "out" / "run.json").write_bytes(content)
    before = all_but_lock(tmp_path / "out")
    assert replace(finished, out=tmp_path / "out").run().error_line
    assert all_but_lock(tmp_path / "out") == before


def test_a_folder_of_other_things_is_not_taken(finished: Job, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert replace(finished, out=tmp_path / "mine").run().error_line
    assert list(batch.paths(tmp_path)) == ["mine", "mine/notes.txt"]


def damaged(finished: Job, tmp_path: Path, pattern: str, content: Any) -> Job:
    """A copy of a finished run in which the files of a pattern are cut, or hold something else."""
    shutil.copytree(finished.out, tmp_path / "out")
    files = sorted((tmp_path / "out").glob(pattern))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    return replace(finished, out=tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"words", None], ids=["empty", "words", "cut"])
@pytest.mark.parametrize("pattern", ["parts/part-00000001.parquet", "parts/*.parquet", "scores.csv"])
def test_damaged_results_are_made_again(
    finished: Job, tmp_path: Path, pattern: str, content: bytes | None
) -> None:
    job = damaged(finished, tmp_path, pattern, content)
    outcome = job.run()
    assert outcome.code == 0, outcome
    assert batch.assert_whole(job.out, [p.name for p in job.folder.iterdir()]) == batch.rows(finished.out)
    assert (job.out / "scores.csv").read_bytes() == (finished.out / "scores.csv").read_bytes()


@pytest.mark.parametrize("content", [b"", b"words", None], ids=["empty", "words", "cut"])
@pytest.mark.parametrize("pattern", ["listing/part-00000001.parquet", "listing/*", "listing/ended.json"])
def test_a_damaged_listing_is_made_again_or_refused(
    finished: Job, tmp_path: Path, pattern: str, content: bytes | None
) -> None:
    """Never rows that are lost or there twice: all is as it was, or one line says what is damaged."""
    job = damaged(finished, tmp_path, pattern, content)
    outcome = job.run()
    if outcome.code == 0:
        names = [path.name for path in job.folder.iterdir()]
        assert batch.assert_whole(job.out, names) == batch.rows(finished.out)
    else:
        assert "listing" in outcome.error_line


def test_a_changed_byte_in_a_part_or_in_the_list_is_noticed(finished: Job, tmp_path: Path) -> None:
    """Or it is one that changes nothing, such as a hint for searches: never other scores, never other images."""
    shutil.copytree(finished.out, tmp_path / "out")
    target = LocalPlace(tmp_path / "out")
    shard = read_shard(target, 1, 4)
    rows = Parts(target).read(shard)
    assert all(rows)
    for file in (tmp_path / "out" / "parts", tmp_path / "out" / "listing"):
        file /= "part-00000001.parquet"
        whole = file.read_bytes()
        noticed = 0
        for position in range(0, len(whole), 23):
            content = bytearray(whole)
            content[position] ^= 0x15
            file.write_bytes(content)
            try:
                found = Parts(target).read(read_shard(target, 1, 4))
            except OutputError:
                found = [None]
            assert None in found or found == rows, position
            noticed += None in found
        assert noticed > len(whole) / 23 / 2
        file.write_bytes(whole)


def test_parts_are_read_without_threads_that_outlive_the_interpreter() -> None:
    """pyarrow's dataset reader let go of a Python buffer in a thread of its own: one run in five ended in an abort."""
    code = """
        import sys, pyarrow as pa
        from cfa_index.workflows.score_listing import parquet_bytes, parquet_table
        table = pa.table({"a": [1, 2]})
        assert parquet_table(parquet_bytes(table)) == table
        print("pyarrow.dataset" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_part_of_another_listing_is_not_taken(finished: Job, tmp_path: Path) -> None:
    """Parts are whole and readable, and lie under another's name."""
    shutil.copytree(finished.out, tmp_path / "out")
    first, second, _ = batch.parts(tmp_path / "out")
    shutil.copy(first, second)
    job = replace(finished, out=tmp_path / "out")
    assert job.run().code == 0
    assert batch.assert_whole(job.out, [p.name for p in job.folder.iterdir()]) == batch.rows(finished.out)


# ---------------------------------------------------------------------------------- where it lies


def test_a_target_inside_the_source_is_refused(finished: Job, tmp_path: Path) -> None:
    folder = batch.write_images(tmp_path / "in", 2)
    (tmp_path / "link").symlink_to(folder)
    before = set(batch.paths(tmp_path))
    for out in (folder, folder / "out", folder / "a" / "b", tmp_path / "link" / "out", folder / ".." / "in"):
        assert "outside" in replace(finished, folder=folder, out=out).run().error_line, out
    assert "outside" in replace(finished, folder=tmp_path / "link", out=folder / "out").run().error_line
    assert set(batch.paths(tmp_path)) == before


def test_a_source_inside_the_target_is_scored_or_refused(finished: Job, tmp_path: Path) -> None:
    """An empty target around its source cannot be: the source is there. Either way nothing of it changes."""
    folder = batch.write_images(tmp_path / "out" / "in", 2)
    before = made_up.tree(folder)
    outcome = replace(finished, folder=folder, out=tmp_path / "out").run()
    assert outcome.error_line
    assert made_up.tree(folder) == before
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != "pictures"] == ["in"]


def test_links_to_folders_are_not_entered_and_links_to_files_are_read(finished: Job, tmp_path: Path) -> None:
    elsewhere = batch.write_images(tmp_path / "elsewhere", 3)
    folder = batch.write_images(tmp_path / "in", 1)
    (folder / "sub").mkdir()
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "self").symlink_to(".")
    (folder / "outside").symlink_to(elsewhere)
    (folder / "twin.png").symlink_to(elsewhere / "00001.png")
    (folder / "one.png").symlink_to("two.png")
    (folder / "two.png").symlink_to("one.png")
    before = made_up.tree(elsewhere)
    job = replace(finished, folder=folder, out=tmp_path / "out")
    assert job.run().code == 3
    found = batch.assert_whole(job.out, ["00000.png", "one.png", "twin.png", "two.png"])
    assert [bool(row["error"]) for row in found] == [False, True, False, True]
    assert made_up.tree(elsewhere) == before


@pytest.mark.parametrize("name", ["out", "parts", "heatmaps", "scores.csv", "run.json", "lock"])
def test_links_in_the_target_lead_nowhere_else(finished: Job, tmp_path: Path, name: str) -> None:
    """A target prepared by somebody else must not make a run write over files elsewhere."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "scores.csv").write_text("mine")
    (tmp_path / "precious" / "run.json").write_text("mine")
    (tmp_path / "precious" / "lock").write_text("mine")
    before = made_up.tree(tmp_path / "precious")
    out = tmp_path / "out"
    if name == "out":
        out.symlink_to(tmp_path / "precious")
    else:
        out.mkdir()
        (out / name).symlink_to(tmp_path / "precious" / ("" if name in ("parts", "heatmaps") else name))
    assert replace(finished, out=out).run("--heatmaps").error_line
    assert made_up.tree(tmp_path / "precious") == before


# ------------------------------------------------------------------------------------ two at once


def test_a_second_run_is_refused_and_names_the_first(scorable: Workplace, tmp_path: Path) -> None:
    folder = batch.write_images(tmp_path / "in", 60)
    job = Job(place=scorable, folder=folder, out=tmp_path / "out", options=SMALL_SHARDS)
    with job.start() as first:
        first.until_parts(1)
        first.pause()
        before = all_but_lock(job.out)
        line = job.run().error_line
        assert str(first.process.pid) in line
        assert "only run" in line
        assert json.loads((job.out / "lock").read_text())["pid"] == first.process.pid
        assert all_but_lock(job.out) == before
        first.kill()
        outcome = job.run()  # at once: the lock went with its holder
        assert outcome.code == 0, outcome
        first.until_gone()
    batch.assert_whole(job.out, [path.name for path in folder.iterdir()])


# ----------------------------------------------------------------------------------- a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "4m") as folder:
        yield folder


def test_a_disk_that_is_full_sooner_or_later(scorable: Workplace, disk: Path, tmp_path: Path) -> None:
    """At the lock, the settings, the listing, a part, a heatmap, a map, the table, the page: wherever it is
    full, one line says so, nothing is half-written, and a rerun on a freed disk finishes."""
    folder = batch.write_images(tmp_path / "in", 12)
    options = ("--shard-images", 4, "--workers", 0, "--heatmaps", "--maps", "--gallery", 3)
    whole = Job(place=scorable, folder=folder, out=tmp_path / "whole", options=options)
    assert whole.run().code == 0
    expected = batch.assert_whole(whole.out, [path.name for path in folder.iterdir()])
    size = sum(file.stat().st_blocks * 512 for file in whole.out.rglob("*"))
    seen = set()
    for leave in [0, 4096, 12_288, *range(20_480, size, max(size // 6, 8192))]:
        job = replace(whole, out=disk / f"out{leave}")
        fill(disk, leave=leave)
        outcome = job.run()
        (disk / "filler").unlink()
        if outcome.code == 0:
            break
        line = outcome.error_line
        assert str(disk) in line
        assert "No space left on device" in line, line
        assert not made_up.leftovers(disk)
        for row in batch.rows(job.out):  # what is there is whole
            assert row == expected[row["image_id"]]
        there = set(batch.paths(job.out)) if job.out.exists() else set()
        seen.add(("listing/ended.json" in there, "scores.csv" in there, len(batch.parts(job.out))))
        outcome = job.run()
        assert outcome.code == 0, (leave, outcome)
        assert batch.assert_whole(job.out, [path.name for path in folder.iterdir()]) == expected
        assert set(batch.paths(job.out)) == set(batch.paths(whole.out))
        shutil.rmtree(job.out)
    assert (True, False, 3) in seen or (True, True, 3) in seen, f"never full at the end: {seen}"
    assert any(count < 3 for _, _, count in seen), f"never full before the last part: {seen}"


def test_a_disk_that_fills_up_in_the_middle(scorable: Workplace, disk: Path, tmp_path: Path) -> None:
    """As a real process, with decoders of its own: one line, nothing left running; then the rerun finishes."""
    folder = batch.write_images(tmp_path / "in", 60)
    job = Job(place=scorable, folder=folder, out=disk / "out", options=(*SMALL_SHARDS, "--workers", 1))
    with job.start() as running:
        running.until_parts(1)
        running.pause()
        fill(disk, leave=0)
        running.send(signal.SIGCONT)
        outcome = running.wait()
        running.until_gone()
    assert outcome.code == 1, outcome
    assert "Traceback" not in outcome.err
    assert "No space left on device" in outcome.err
    assert not made_up.leftovers(disk)
    assert 1 <= len(batch.parts(job.out)) < 15
    (disk / "filler").unlink()
    assert job.run().code == 0
    batch.assert_whole(job.out, [path.name for path in folder.iterdir()])
