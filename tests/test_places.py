"""A folder as a place: its order, its odd entries, whole writes, and who holds it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from cfa_index.errors import DatasetError, OutputError
from cfa_index.places import Entry, LocalPlace, local

SUFFIXES = frozenset({".png", ".jpg"})
NAMES = st.text("ab-.0/é", min_size=1, max_size=12)


def paths(place: LocalPlace, after: bytes = b"") -> list[bytes]:
    return [entry.path for entry in place.walk(SUFFIXES, after)]


def write(root: Path, *names: str) -> LocalPlace:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return LocalPlace(root)


@given(names=st.sets(NAMES, max_size=12), after=NAMES)
def test_the_order_is_that_of_the_bytes_and_it_goes_on_anywhere(
    names: set[str], after: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("walk")
    kept: set[str] = set()
    for name in names:
        parts = [part for part in name.split("/") if part.strip(".")]
        file = "/".join([f"d{part}" for part in parts[:-1]] + [f"f{part}.png" for part in parts[-1:]])
        if file:
            kept.add(file)
    place = write(root, *kept)
    expected = sorted(os.fsencode(name) for name in kept)
    assert paths(place) == expected
    assert paths(place, os.fsencode(after)) == [path for path in expected if path > os.fsencode(after)]
    for path in expected:
        assert paths(place, path) == [other for other in expected if other > path]


def test_runs_on_disk_give_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{(number * 37) % 101}{'x' * (number % 3)}.png" for number in range(100)]
    place = write(tmp_path, *names, "sub/a.png", "sub-b.png", "new\nline.png")
    whole = paths(place)
    monkeypatch.setattr(local, "_HELD", 7)
    assert paths(place) == whole
    assert len(whole) == len(set(names)) + 3


def test_what_is_listed_and_what_is_not(tmp_path: Path) -> None:
    place = write(tmp_path, "a.PNG", "b.txt", ".hidden.png", ".cache/c.png", "deep/er/d.jpg")
    (tmp_path / "folder.png").mkdir()
    write(tmp_path / "folder.png", "inside.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    found = list(place.walk(SUFFIXES))
    assert [entry.path for entry in found] == [b"a.PNG", b"deep/er/d.jpg", b"folder.png", b"gone.png"]
    assert found[0] == Entry(path=b"a.PNG", size=1, mtime_ns=(tmp_path / "a.PNG").stat().st_mtime_ns)
    assert (found[3].size, found[3].mtime_ns) == (-1, -1)


def test_a_folder_that_cannot_be_read_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write(tmp_path, "a.png", "locked/b.png", "z.png")
    real = os.scandir

    def refuse(folder: bytes) -> object:
        if folder.rstrip(b"/").endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(place.walk(SUFFIXES))
    assert [entry.path for entry in found] == [b"a.png", b"locked/", b"z.png"]
    assert "Permission denied" in found[1].error
    assert [entry.path for entry in place.walk(SUFFIXES, b"locked/")] == [b"z.png"]


def test_a_place_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        LocalPlace(tmp_path / "nowhere").walk(SUFFIXES)


def test_a_file_is_there_when_the_body_ends_and_not_when_it_fails(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    with place.create("sub/a.txt") as handle:
        handle.write(b"one")
        assert place.read("sub/a.txt") is None
    assert place.read("sub/a.txt") == b"one"
    failing = pytest.raises(KeyError)
    with failing, place.create("sub/a.txt") as handle:
        handle.write(b"two")
        raise KeyError
    assert (place.read("sub/a.txt"), place.names("sub")) == (b"one", ["a.txt"])
    place.remove("sub/a.txt")
    place.remove("sub/a.txt")
    assert (place.names("sub"), place.names("nowhere")) == ([], [])


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    place = write(tmp_path, "deep/.part.0123.tmp", "deep/kept.tmp", ".kept", "deep/a.png")
    place.sweep()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".kept",
        "a.png",
        "kept.tmp",
    ]


def test_one_holds_a_place_and_the_other_is_told_who(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "new")
    refused = pytest.raises(OutputError, match=f"process {os.getpid()} on ")
    with place.held("lock"), refused, place.held("lock"):
        pass
    assert place.read("lock") == b""
    with place.held("lock"):
        pass


def test_a_file_system_without_locks_is_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(handle: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    refusal = pytest.raises(OutputError, match="No locks available")
    with refusal, LocalPlace(tmp_path).held("lock"):
        pass
