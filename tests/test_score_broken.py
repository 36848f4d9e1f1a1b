"""Batch scoring of files that are no images, have odd names, or are gone: no file without a row."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import batch
import broken
import made_up
import pyarrow.parquet as pq
import pytest
from batch import Job
from made_up import Outcome, Workplace

ODD_NAMES = (
    b"=1+cmd|' /C calc'!A0.png",
    b"+plus.png",
    b"-minus.png",
    b"-o.png",
    b"@at.png",
    b"\ttab.png",
    b"\rreturn.png",
    b"\nline.png",
    b"in\nthe middle\r\n.png",
    b"caf\xe9.png",
    b"\xff\xfe.png",
    b"x" * 196 + b".png",
    "夜".encode() * 80 + b".png",
    b"<img src=x onerror=alert(1)>.png",
    b"\"quoted\", and 'more'.png",
    b"%s {x} $HOME `id` $(id).PNG",
    b"[bold]markup[/].png",
    b" .png",
    b"back\\slash.png",
)
NESTED = (b"=folder/a.png", b"caf\xe9/b.png", b"x.png.d/c.png", b"a b/c\nd/e.png", b"z" * 200 + b"/f.png")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A folder of images of which a tenth are broken in every way.

    Attributes:
        kinds: of each broken file, by its name.
        vanishing: whole images that are to vanish once they are listed.
    """

    folder: Path
    names: list[bytes]
    kinds: dict[bytes, str]
    vanishing: list[bytes]


def mixture(folder: Path, count: int) -> Mixture:
    """`count` entries: whole ones, odd names, every kind of broken file in turn, the last few to vanish."""
    odd = [*ODD_NAMES, *NESTED]
    broken_count = count // 10
    kinds = broken.kinds()
    vanishing = broken_count // 10
    chosen = [kinds[number % len(kinds)] for number in range(broken_count - vanishing)]
    batch.write_images(folder, count - len(odd) - len(chosen))
    picture = broken.encoded("PNG", 1)
    for name in odd:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    at: dict[bytes, str] = {}
    for number, kind in enumerate(chosen):
        # Spread among the others; the suffix says what is tried, and stays.
        path = broken.write(folder, kind, f"{number * 9:05d} {kind}")
        at[os.fsencode(path.name)] = kind
    whole = [f"{number:05d}.png".encode() for number in range(count - len(odd) - len(chosen))]
    gone = whole[-vanishing:]
    return Mixture(folder=folder, names=[*whole, *odd, *at], kinds=at, vanishing=gone)


def vanish_while_it_waits(job: Job, mix: Mixture) -> Outcome:
    """A run that is stopped once all is listed and one part is written; meanwhile some files vanish."""
    with job.start("--json", "-") as running:
        running.until(lambda: (job.out / "listing" / "ended.json").exists(), "the end of the listing")
        running.until_parts(1)
        running.pause()
        done = len(batch.rows(job.out))
        for name in mix.vanishing:
            (mix.folder / os.fsdecode(name)).unlink()
        running.send(signal.SIGCONT)
        outcome = running.wait()
    ids = {row["path"]: row["image_id"] for row in batch.listed(job.out)}
    assert all(ids[name] > done for name in mix.vanishing), "they were scored before they vanished"
    return outcome


def check(job: Job, mix: Mixture, document: Any) -> None:
    """Every file has its one row; the broken ones and those that vanished say why, and no other."""
    found = batch.assert_whole(job.out, mix.names)
    by_path = {entry["path"]: row for entry, row in zip(batch.listed(job.out), found, strict=True)}
    for name, kind in mix.kinds.items():
        assert broken.explains(kind, by_path[name]["error"]), (kind, by_path[name])
    for name in mix.vanishing:
        assert "No such file" in by_path[name]["error"], by_path[name]
    bad = {*mix.kinds, *mix.vanishing}
    assert {name for name, row in by_path.items() if row["error"]} == bad
    assert {name for name, row in by_path.items() if row["score"] is not None} == set(mix.names) - bad
    assert (document["images"], document["rejected"]) == (len(mix.names), len(bad))


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_tenth_of_the_images_is_broken_in_every_way(
    scorable: Workplace, tmp_path: Path, count: int
) -> None:
    mix = mixture(tmp_path / "in", count)
    job = Job(
        place=scorable,
        folder=mix.folder,
        out=tmp_path / "out",
        options=("--shard-images", count // 10, "--gallery", 4),
    )
    around = set(batch.paths(tmp_path))
    outcome = vanish_while_it_waits(job, mix)
    assert outcome.code == 3, outcome
    check(job, mix, outcome.document)
    outside = {path for path in batch.paths(tmp_path) if path.partition("/")[0] != "out"}
    assert outside == around - {f"in/{os.fsdecode(name)}" for name in mix.vanishing}


@pytest.fixture(scope="module")
def small(scorable: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One file of each kind among twice as many whole images, scored."""
    root = tmp_path_factory.mktemp("small")
    folder = batch.write_images(root / "in", 2 * len(broken.kinds()))
    for number, kind in enumerate(broken.kinds()):
        broken.write(folder, kind, f"{2 * number:05d} {kind}")
    job = Job(
        place=scorable,
        folder=folder,
        out=root / "out",
        options=("--shard-images", 16, "--heatmaps", "--workers", 2, "--no-report"),
    )
    outcome = job.run("--json", "-")
    assert outcome.code == 3, outcome
    assert outcome.document["rejected"] == len(broken.kinds())
    return job


def names(job: Job) -> list[str]:
    return [path.name for path in job.folder.iterdir()]


def test_a_second_run_does_not_try_the_broken_ones_again(small: Job) -> None:
    before = made_up.tree(small.out)
    outcome = small.run("--json", "-")
    assert (outcome.code, outcome.document["resumed"]) == (3, 3 * len(broken.kinds()))
    after = made_up.tree(small.out)
    assert {name: after[name] for name in after if name != "lock"} == {
        name: before[name] for name in before if name != "lock"
    }


def test_repaired_images_are_scored_by_retry_errors_and_no_others(small: Job, tmp_path: Path) -> None:
    """Rows that had no error stay, byte for byte; files that were changed meanwhile are not looked at."""
    job = replace(small, out=tmp_path / "out")
    assert job.run().code == 3
    before = batch.assert_whole(job.out, names(job))
    pieces = {part.name: part.read_bytes() for part in batch.parts(job.out)}
    kinds = {f"{2 * number:05d} {kind}": kind for number, kind in enumerate(broken.kinds())}
    repaired = [name for name in kinds if names_before(name, before)]
    assert repaired
    try:
        for number, name in enumerate(repaired):
            broken.repair(job.folder / name, number)
        outcome = job.run("--retry-errors", "--json", "-")
        assert outcome.code == 3, outcome
        after = batch.assert_whole(job.out, names(job))
        assert outcome.document["rejected"] == len(kinds) - len(repaired)
        for old, new in zip(before, after, strict=True):
            if not old["error"]:
                assert new == old
            elif new["uri"] in repaired:
                assert new["error"] is None
                assert new["score"] is not None
            else:
                assert broken.explains(kinds[new["uri"]], new["error"]), new
        untouched = {
            part.name
            for part in batch.parts(job.out)
            if not {row["uri"] for row in pq.read_table(part).to_pylist()} & set(repaired)
        }
        assert untouched
        for part in batch.parts(job.out):
            if part.name in untouched:
                assert part.read_bytes() == pieces[part.name]
        heatmaps = {int(path.name.partition("_")[0]) for path in (job.out / "heatmaps").iterdir()}
        assert heatmaps == {row["image_id"] for row in after if not row["error"]}
    finally:
        for name in repaired:
            (job.folder / name).unlink()
            broken.write(job.folder, kinds[name], name)


def names_before(name: str, rows: list[batch.Row]) -> bool:
    """Whether an image lies in the first half of the rows."""
    place = next(row["image_id"] for row in rows if row["uri"] == name)
    return bool(place < len(rows) // 2)


def test_all_repaired_is_exit_code_0(scorable: Workplace, tmp_path: Path) -> None:
    folder = batch.write_images(tmp_path / "in", 6)
    (folder / "00003.png").write_bytes(b"")
    job = Job(place=scorable, folder=folder, out=tmp_path / "out")
    assert job.run().code == 3
    assert job.run().code == 3
    broken.repair(folder / "00003.png", 3)
    outcome = job.run("--retry-errors")
    assert outcome.code == 0, outcome
    unbroken = replace(job, out=tmp_path / "unbroken")
    assert unbroken.run().code == 0
    assert [row["score"] for row in batch.rows(job.out)] == [
        pytest.approx(row["score"], rel=1e-5) for row in batch.rows(unbroken.out)
    ]
