"""Batch scoring of what somebody else made: images, names and models that are meant to do harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import batch
import broken
import made_up
import numpy as np
import pytest
import torch
from batch import Job
from made_up import Workplace

from cfa_index import CfaIndexError, ModelBundle
from cfa_index.bundle import set_current
from cfa_index.files import seal, sha256_of_file

MEBIBYTE = 1 << 20


class Payload:
    """Unpickling it makes a file: the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def with_file(place: Workplace, root: Path, name: str, content: bytes) -> Workplace:
    """A copy of the model in which a file has other content, every checksum made right."""
    model = shutil.copytree(place.models / "weave", root / "models" / "weave")
    folder = model / "generations" / "0001"
    (folder / name).write_bytes(content)
    with_manifest(model, {"files": {**manifest(model)["files"], name: sha256_of_file(folder / name)}})
    return Workplace(root=root)


def manifest(model: Path) -> dict[str, Any]:
    """The document of a copied model, without its seal."""
    document = json.loads((model / "generations" / "0001" / "manifest.json").read_bytes())
    return {key: value for key, value in document.items() if key != "sha256"}


def with_manifest(model: Path, change: Mapping[str, Any]) -> None:
    """Seal a changed manifest and point at it, as its maker would."""
    document = seal({**manifest(model), **change})
    (model / "generations" / "0001" / "manifest.json").write_text(json.dumps(document))
    set_current(model, "0001")


def contents(canary: Path) -> Iterator[bytes]:
    """What runs code where it is unpickled: bare, as numpy's object array, and in torch's archive."""
    payload = Payload(canary)
    yield pickle.dumps(payload)
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([payload], dtype=object), allow_pickle=True)
    yield array.getvalue()
    torch.save(payload, archive)
    yield archive.getvalue()


def test_the_contents_do_run_code_where_they_are_unpickled(tmp_path: Path) -> None:
    bare, array, archive = contents(tmp_path / "canary")
    loads: tuple[Callable[[], Any], ...] = (
        lambda: pickle.loads(bare),
        lambda: np.load(io.BytesIO(array), allow_pickle=True),
        lambda: torch.load(io.BytesIO(archive), weights_only=False),
    )
    for load in loads:
        load()
        (tmp_path / "canary").unlink()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A model with every file that a model may have, an index among them."""
    place = made_up.workplace(tmp_path_factory.mktemp("indexed"), test=1)
    assert place.build("--index", "hnsw").code == 0
    return place


FILES = (
    "vectors.npy",
    "baseline.npy",
    "descriptor.safetensors",
    "backbone.safetensors",
    "sources.parquet",
    "exemplars.parquet",
    "index.faiss",
)
ONLY_FOR_THE_PAGE = ("sources.parquet", "exemplars.parquet")
"""Read when all is scored, if at all."""


def test_these_are_the_files_of_a_model(indexed: Workplace) -> None:
    assert set(manifest(indexed.models / "weave")["files"]) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_any_file_of_a_model_is_not_run(
    indexed: Workplace, tmp_path: Path, name: str
) -> None:
    """Numpy, safetensors, Parquet and FAISS refuse it, in one line, before anything is written."""
    canary = tmp_path / "canary"
    folder = batch.write_images(tmp_path / "in", 2)
    for number, content in enumerate(contents(canary)):
        place = with_file(indexed, tmp_path / str(number), name, content)
        outcome = Job(place=place, folder=folder, out=tmp_path / str(number) / "out").run()
        assert not canary.exists()
        if name not in ONLY_FOR_THE_PAGE:
            assert name in outcome.error_line
            assert not (tmp_path / str(number) / "out").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", bytes(4096), b"\x80\x04" * 99], ids=["empty", "zeros", "noise"])
def test_garbage_in_the_place_of_any_file_of_a_model_is_one_line(
    indexed: Workplace, tmp_path: Path, name: str, content: bytes
) -> None:
    place = with_file(indexed, tmp_path, name, content)
    folder = batch.write_images(tmp_path / "in", 2)
    outcome = Job(place=place, folder=folder, out=tmp_path / "out").run()
    if name not in ONLY_FOR_THE_PAGE:
        assert name in outcome.error_line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/hostname", "a/../../x", "..", ".", "", "x\0y", "x\ny", "-o"]
)
def test_a_manifest_that_names_files_elsewhere_is_refused(
    scorable: Workplace, tmp_path: Path, name: str
) -> None:
    model = shutil.copytree(scorable.models / "weave", tmp_path / "models" / "weave")
    (tmp_path / "models" / "weave" / "x").write_bytes(b"x")
    checksum = sha256_of_file(tmp_path / "models" / "weave" / "x")
    with_manifest(model, {"files": {**manifest(model)["files"], name: checksum}})
    before = made_up.tree(tmp_path)
    folder = scorable.data / "weave" / "test"
    job = Job(place=Workplace(root=tmp_path), folder=folder, out=tmp_path / "out")
    assert "missing" in job.run().error_line
    assert made_up.tree(tmp_path) == before


ODD_VALUES: tuple[Any, ...] = (
    None,
    [],
    {},
    "x",
    -1,
    1e300,
    True,
    [None],
    {"x": None},
    "../../x",
    [[[]]],
    10**30,
)


def places_in(document: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The way to every value of a document of objects."""
    for key, value in document.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from places_in(value, (*at, key))


def changed(document: dict[str, Any], at: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The document with another value at one place."""
    inner = changed(document[at[0]], at[1:], value) if at[1:] else value
    return {**document, at[0]: inner}


@pytest.mark.parametrize("thoroughly", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sealed_manifest_with_any_odd_value_is_refused_or_does_no_harm(
    indexed: Workplace, tmp_path: Path, thoroughly: bool
) -> None:
    """Its maker can seal what he likes: what is not refused can be loaded, and what fails does so in one line."""
    model = shutil.copytree(indexed.models / "weave", tmp_path / "weave")
    document = manifest(model)
    loaded = 0
    for at in places_in(document):
        for value in ODD_VALUES if thoroughly else ODD_VALUES[2:5]:
            with_manifest(model, changed(document, at, value))
            try:
                ModelBundle.load(model)
                loaded += 1
            except CfaIndexError:
                continue
            except Exception as error:
                raise AssertionError(f"{at} {value!r}: {error!r}") from error
    assert loaded > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weave"]


# ----------------------------------------------------------------------------------------- images


def test_bombs_are_refused_before_they_are_decoded(scorable: Workplace, tmp_path: Path) -> None:
    """No process of a run over bombs holds more than those of a run without, but for a few megabytes."""
    peaks = {}
    for name in ("good", "bombs"):
        folder = batch.write_images(tmp_path / name, 16)
        if name == "bombs":
            for kind in broken.kinds():
                if "bomb" in kind or "gigabytes" in kind or "endless" in kind:
                    broken.write(folder, kind)
        job = Job(
            place=scorable,
            folder=folder,
            out=tmp_path / f"out {name}",
            options=("--workers", 1, "--max-pixels", 90_000_000, "--no-report"),
        )
        with job.start() as running:
            peak = batch.watched(running)
            outcome = running.wait()
        assert outcome.code == (3 if name == "bombs" else 0), outcome
        assert 0 < peak.worker < peak.parent
        assert not peak.libraries
        peaks[name] = peak
    assert peaks["bombs"].worker <= peaks["good"].worker + 48 * MEBIBYTE, peaks
    # It decodes nothing, and torch's own memory differs by some 200 MiB from run to run.
    assert peaks["bombs"].parent <= peaks["good"].parent + 512 * MEBIBYTE, peaks


def test_max_pixels_bounds_what_is_decoded(scorable: Workplace, tmp_path: Path) -> None:
    folder = batch.write_images(tmp_path / "in", 2)
    made_up.write_image(folder / "large.png", made_up.texture(1, width=80, height=60))
    job = Job(place=scorable, folder=folder, out=tmp_path / "out", options=("--max-pixels", 64 * 64))
    assert job.run().code == 3
    large = batch.assert_whole(job.out, ["00000.png", "00001.png", "large.png"])[2]
    assert broken.explains("bomb by content.png", large["error"])
    assert replace_out(job, tmp_path / "larger", 80 * 60).run().code == 0


def replace_out(job: Job, out: Path, max_pixels: int) -> Job:
    return Job(place=job.place, folder=job.folder, out=out, options=("--max-pixels", max_pixels))


# ------------------------------------------------------------------------------------------ names

FORMULAS = (
    "=1+1.png",
    '=HYPERLINK("http:..x";"a").png',
    "+1.png",
    "-1.png",
    "@SUM(1).png",
    "\t=1.png",
    "\r=1.png",
    "\n=1.png",
    " =1.png",
    "'=1.png",
    '"=1.png',
    ",=1.png",
    ";=1.png",
    "＝1.png",
    "\x1b]0;title\x07\x1b[2J.png",
    "\x9b2J.png",
)


def test_no_cell_of_the_table_is_a_formula(scorable: Workplace, tmp_path: Path) -> None:
    """Broken, so that the errors hold the names too. What is escaped can be told from what is not."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(FORMULAS):
        (folder / name).write_bytes(b"" if number % 2 else broken.encoded("PNG"))
        sub = folder / name.removesuffix(".png")
        sub.mkdir()
        (sub / "x.png").write_bytes(b"=1+1")
    job = Job(place=scorable, folder=folder, out=tmp_path / "out")
    outcome = job.run()
    assert outcome.code == 3
    assert all(sign.isprintable() or sign == "\n" for sign in outcome.err), "a name reaches the terminal"
    uris = [row["uri"] for row in batch.rows(job.out)]
    assert len(uris) == 2 * len(FORMULAS)
    cells = [line["uri"] for line in batch.table(job.out)]
    assert [cell.removeprefix("'") for cell in cells] == uris
    assert len(set(cells)) == len(uris)
    for line in batch.table(job.out):
        for column in ("uri", "error"):
            assert line[column][:1] not in tuple("=+-@＝＋－＠\t\r\n"), line
        float(line["score"] or 0)  # numbers are not escaped, a minus is none of a formula's


def test_nothing_is_written_outside_the_target(scorable: Workplace, tmp_path: Path) -> None:
    """Names with dots, backslashes and what looks like a way up, with everything that a run can write."""
    folder = tmp_path / "data" / "in"
    (folder / "..." / "....").mkdir(parents=True)
    picture = broken.encoded("PNG")
    names = (
        "..png",
        "...png",
        "..\\..\\x.png",
        "%2e%2e%2fx.png",
        "C:x.png",
        "~root.png",
        "$OUT.png",
        "`x`.png",
    )
    for name in (*names, ".../x.png", ".../..../x.png", "x" * 250 + ".png"):
        (folder / name).write_bytes(picture)
    before = set(batch.paths(tmp_path)), set(os.listdir(Path.cwd()))  # noqa: PTH208 - names alone
    job = Job(place=scorable, folder=folder, out=tmp_path / "data" / "out", options=("--heatmaps", "--maps"))
    outcome = job.run("--events", tmp_path / "events", "--json", tmp_path / "json")
    assert outcome.code == 0, outcome
    made = set(batch.paths(tmp_path)) - before[0]
    assert {path for path in made if not path.startswith("data/out")} == {"events", "json"}
    assert before[0] <= set(batch.paths(tmp_path))
    assert set(os.listdir(Path.cwd())) == before[1]  # noqa: PTH208 - names alone
    assert all(path.name.isprintable() for path in (job.out / "heatmaps").iterdir())
