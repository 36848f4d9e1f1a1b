"""A study against builds and brute force; stopped, changed and damaged; and what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made_up import CONSOLE_SCRIPT, ONE_THREAD, Outcome, Workplace, cfa, leftovers, tree
from study_rows import made_up_rows

import cfa_index.workflows.study as study_module
from cfa_index import (
    DeviceError,
    Event,
    IndexSpec,
    MemoryBank,
    ModelSpec,
    Notice,
    OutputError,
    SpecError,
    StageAdvanced,
    Start,
    StudyReport,
    StudyRow,
    StudySpec,
    load_backbone,
    make_index,
    open_category,
    study,
)
from cfa_index.specs import FeatureSpec
from cfa_index.workflows.study import with_frontier
from cfa_index.workflows.study_estimate import pace
from cfa_index.workflows.study_measure import measure_recall
from cfa_index.workflows.study_plan import duration

NETWORK = ("--weights", "random", "--backbone", "resnet18", "--strides", "4,8", "--size", "64")
SWEEP = (
    *("--method", "hybrid,random", "--bank-size", "32,64", "--gamma-d", "1,1/2", "--index", "flat,ivf"),
    *("--repeat", "1", "--queries", "128", "--threads", "1"),
)
ONE_CELL = (
    *("--method", "random", "--bank-size", "16", "--gamma-d", "1/4", "--index", "flat", "--repeat", "1"),
)
RESULTS = {"study.parquet", "study.html", "memory-accuracy.png", "latency-recall.png", "size-throughput.png"}
FEATURES = FeatureSpec(backbone="resnet18", strides=(4, 8), size_px=64)
SMALL = StudySpec(
    methods=("random",), bank_sizes=(16,), gamma_ds=(0.25,), indexes=("flat", "ivf"), repeat=1, queries=64
)


def run_study(
    place: Workplace, *more: object, category: str = "weave", sweep: tuple[str, ...] = SWEEP
) -> Outcome:
    """`cfa-index study` of a quick network into <root>/study."""
    folders = ("--data-root", place.data, "--features-dir", place.features, "-o", place.root / "study")
    return cfa("study", "-c", category, *folders, *NETWORK, *sweep, *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Two categories that no test of this file changes."""
    made = made_up.workplace(tmp_path_factory.mktemp("place"), train=12, test=3)
    made_up.write_category(made.data, "felt", train=3, test=1)
    return made


@pytest.fixture(scope="module")
def done(place: Workplace) -> Outcome:
    """A study of six cells, and its document."""
    outcome = run_study(place, "--json", "-")
    assert outcome.code == 0, outcome
    return outcome


@pytest.fixture
def small(place: Workplace, tmp_path: Path) -> Callable[..., StudyReport]:
    """A study of two cells through the library, into a folder of its own; the features are shared."""
    network = load_backbone("resnet18", (4, 8), size_px=64, weights="random")

    def run(**given: Any) -> StudyReport:
        whole = {
            "category": open_category(place.data, "weave"),
            "spec": ModelSpec(features=FEATURES),
            "sweep": SMALL,
            "folder": tmp_path / "study",
            "backbone": network,
            "features_dir": place.features,
            "device": torch.device("cpu"),
            **given,
        }
        return study(**whole)

    return run


def test_it_writes_a_row_a_cell_and_every_result(place: Workplace, done: Outcome) -> None:
    folder, rows = place.root / "study", done.document["rows"]
    assert {path.name for path in folder.iterdir()} == RESULTS | {"study.json", "cells", ".lock"}
    assert leftovers(folder) == []
    cells = [(row["method"], row["bank_size"], row["gamma_d"], row["index"]) for row in rows]
    assert cells == [
        *[("hybrid", 32, 1.0, "flat"), ("hybrid", 32, 1.0, "ivf"), ("hybrid", 32, 0.5, "flat")],
        *[("random", 32, 1.0, "flat"), ("hybrid", 64, 1.0, "flat"), ("hybrid", 64, 1.0, "ivf")],
    ]
    table = pq.read_table(folder / "study.parquet")
    assert [{**row, "error": None} for row in table.to_pylist()] == rows
    assert table.schema.metadata[b"category"] == b"weave"
    for row in rows:
        assert row["memories"] == row["bank_size"]
        assert row["vectors_bytes"] == 4 * row["memories"] * row["width"]
        assert row["vectors_disk_bytes"] == row["vectors_bytes"] + 128
        assert row["resident_bytes"] == (
            row["vectors_bytes"] if row["index"] == "flat" else row["index_bytes"]
        )
        for latency in ("image", "patch"):
            figures = [row[f"{latency}_ms_{p}"] for p in ("p50", "p95", "p99")]
            assert 0 < figures[0] <= figures[1] <= figures[2]
        assert min(row[f"images_per_s_{batch}"] for batch in (1, 8, 64)) > 0
        assert row["recall_at_1"] == 1 or row["index"] == "ivf"
        assert row["backbone_ms"] > 0
    assert any(row["on_frontier"] for row in rows)
    assert "* on the frontier" in done.err
    assert "6 cells; about" in done.err


def test_a_command_builds_its_cell_with_the_same_accuracy(place: Workplace, done: Outcome) -> None:
    """The oracle of a row's AUROC is `evaluate` on the model that its command builds."""
    row = done.document["rows"][1]
    words = shlex.split(row["command"])
    assert words[0] == "cfa-index"
    built = cfa(*words[1:], *place.model, "--json", "-")
    assert built.code == 0, built
    spec = ModelSpec.from_dict(built.document["spec"])
    assert (spec.bank.method, spec.bank.size, spec.descriptor.gamma_d) == ("hybrid", 32, 1.0)
    assert spec.index.factory == "ivf"
    assert built.document["index"]["factory"] == row["factory"]
    generation = Path(built.document["path"])
    assert (generation / "vectors.npy").stat().st_size == row["vectors_disk_bytes"]
    assert (generation / "index.faiss").stat().st_size == row["index_disk_bytes"]
    measured = cfa("evaluate", "-c", "weave", "--data-root", place.data, *place.model, "--json", "-").document
    assert row["image_auroc"] == pytest.approx(measured["image_auroc"], abs=1e-3)
    assert row["pixel_auroc"] == pytest.approx(measured["pixel_auroc"], abs=1e-3)  # features in half floats


def test_what_was_measured_is_not_measured_again(place: Workplace, done: Outcome) -> None:
    again = run_study(place, "--json", "-")
    assert again.document["cells_measured"] == 0
    assert again.document["rows"] == done.document["rows"]
    assert "6 measured before" in again.err
    wider = run_study(place, "--index", "flat,hnsw", "--json", "-")
    assert wider.document["cells_measured"] == 2


def test_a_dry_run_says_how_long_it_may_take_and_writes_nothing(
    place: Workplace, done: Outcome, tmp_path: Path
) -> None:
    empty = replace(place, root=tmp_path)
    made_up.write_category(empty.data, train=3, test=1)
    before = tree(tmp_path)
    first = run_study(empty, "--dry-run", "--json", "-")
    assert first.code == 0, first
    assert tree(tmp_path) == before
    assert first.document["left_s"] > first.document["features_s"] > 0
    assert [cell["measured"] for cell in first.document["cells"]] == [False] * 6
    known = run_study(place, "--bank-size", "32,64,100000", "--dry-run", "--json", "-").document
    assert [cell["measured"] for cell in known["cells"]][:6] == [True] * 6
    assert ["a bank of at most" in (cell["error"] or "") for cell in known["cells"]] == [False] * 6 + [
        True
    ] * 2
    assert (known["left_s"], known["features_s"]) == (0, 0)


def test_a_study_that_was_stopped_goes_on(small: Callable[..., StudyReport]) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StageAdvanced) and event.stage == "study":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(listener=stop)
    first = small()
    assert first.measured == 1
    assert small().rows == first.rows


def test_a_changed_cell_is_another_one(
    small: Callable[..., StudyReport], place: Workplace, tmp_path: Path
) -> None:
    assert small().measured == 2
    assert small(sweep=replace(SMALL, repeat=2)).measured == 2
    assert small(spec=ModelSpec(features=FEATURES, seed=1)).measured == 2
    other = tmp_path / "data"
    made_up.write_category(other, train=12, test=3)  # the same pictures under another root
    assert small(category=open_category(other, "weave"), features_dir=tmp_path / "f").measured == 2
    (other / "weave" / "ground_truth" / "hole" / "000_mask.png").write_bytes(
        (other / "weave" / "ground_truth" / "hole" / "001_mask.png").read_bytes()
    )
    assert small(category=open_category(other, "weave"), features_dir=tmp_path / "f").measured == 2


def test_damaged_files_are_made_again(small: Callable[..., StudyReport], tmp_path: Path) -> None:
    first = small()
    cells = sorted((tmp_path / "study" / "cells").iterdir())
    cells[0].write_bytes(cells[0].read_bytes()[:50])
    document = json.loads(cells[1].read_text())
    document["row"]["image_auroc"] = 1.0
    document["row"]["method"] = "full"
    cells[1].write_text(json.dumps(document))
    (tmp_path / "study" / "study.parquet").write_bytes(b"no table")
    told: list[str] = []
    again = small(listener=lambda event: told.append(event.message) if isinstance(event, Notice) else None)
    assert again.measured == 2
    assert sum("is damaged" in message for message in told) == 2
    settings = [(row.method, row.bank_size, row.index, row.image_auroc) for row in first.rows]
    assert [(row.method, row.bank_size, row.index, row.image_auroc) for row in again.rows] == settings
    assert pq.read_table(tmp_path / "study" / "study.parquet").num_rows == 2


def test_without_a_test_split_there_is_recall(tmp_path: Path) -> None:
    bare = Workplace(root=tmp_path)
    made_up.write_good(bare.data / "weave" / "train" / "good", 10)
    outcome = run_study(
        bare,
        "--json",
        "-",
        sweep=ONE_CELL,
    )
    assert outcome.code == 0, outcome
    assert outcome.err.count("has no test split") == 1
    (row,) = outcome.document["rows"]
    assert (row["image_auroc"], row["pixel_auroc"], row["recall_at_1"]) == (None, None, 1.0)
    assert row["on_frontier"]
    assert "AUROC" not in outcome.err.split("has no test split: there is no AUROC")[1]


def test_without_masks_there_is_no_pixel_auroc(tmp_path: Path) -> None:
    bare = made_up.workplace(tmp_path, train=6, test=2)
    (bare.data / "weave" / "ground_truth" / "hole" / "000_mask.png").unlink()
    outcome = run_study(
        bare,
        "--json",
        "-",
        "--held-out",
        "0",
        sweep=(
            "--method",
            "random",
            "--bank-size",
            "16",
            "--gamma-d",
            "1/4",
            "--index",
            "ivf",
            "--repeat",
            "1",
        ),
    )
    (row,) = outcome.document["rows"]
    assert row["image_auroc"] is not None
    assert row["pixel_auroc"] is None
    assert "no images are held out" in outcome.err


def test_a_cell_that_cannot_be_made_is_a_row_with_its_reason(
    small: Callable[..., StudyReport], tmp_path: Path
) -> None:
    sweep = replace(SMALL, bank_sizes=(2, 16, 10**6), indexes=("flat", "PQ7x99"))
    report = small(sweep=sweep)
    reasons = {(row.bank_size, row.index): row.error for row in report.rows}
    assert "at most the bank's 2 memories" in reasons[2, "flat"]
    assert "bank of at most" in reasons[10**6, "flat"]
    assert reasons[16, "flat"] == ""
    assert "PQ7x99" in reasons[16, "PQ7x99"]
    assert report.measured == 1
    assert "not made" in (tmp_path / "study" / "study.html").read_text()


def test_an_index_that_a_card_does_not_have_is_a_row_too(
    small: Callable[..., StudyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(start: Start, *args: object, **more: object) -> tuple[Start, None]:
        if start.spec.index.factory == "flat":
            return start, None
        raise DeviceError(expected="an index that FAISS has on a GPU", got="ivf", remedy="use --index flat")

    monkeypatch.setattr(study_module, "index_bank", refuse)
    assert [row.error[:17] for row in small().rows] == ["", "expected an index"]


def test_a_study_without_any_cell_that_can_be_made_fails(place: Workplace) -> None:
    outcome = run_study(
        place,
        "--bank-size",
        "1000000",
        "--method",
        "random",
        "-o",
        place.root / "none",
    )
    assert "a cell that can be made" in outcome.error_line
    assert not (place.root / "none" / "study.html").exists()


def test_names_of_others_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert('\"x\"&amp;') $(echo) `id`"
    hostile = Workplace(root=tmp_path)
    made_up.write_category(hostile.data, name, train=6, test=1)
    outcome = run_study(hostile, "--json", "-", category=name, sweep=ONE_CELL)
    assert outcome.code == 0, outcome
    (row,) = outcome.document["rows"]
    assert shlex.split(row["command"])[3] == name
    page = (tmp_path / "study" / "study.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(" in page


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--method", "hybrid,best"), "hybrid, best"),
        (("--method", "full"), "methods to be"),
        (("--index", "flat,ivff"), "flat, ivff"),
        (("--bank-size", "0"), "bank sizes"),
        (("--bank-size", "32,32"), "none twice"),
        (("--gamma-d", "2"), "gamma_d"),
        (("--min-recall", "99"), "min_recall"),
        (("--backbone", "resnet19"), "resnet19"),
    ],
)
def test_settings_that_cannot_be_are_named(
    place: Workplace, tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    assert complaint in run_study(place, *options, "-o", tmp_path / "new").error_line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "word"),
    [("--bank-size", "many"), ("--gamma-d", "wide"), ("--repeat", "0"), ("--queries", "x")],
)
def test_words_that_are_no_numbers_are_bad_usage(place: Workplace, option: str, word: str) -> None:
    assert run_study(place, option, word).code == 2


def test_factory_strings_are_set_apart_and_a_config_file_is_heeded(place: Workplace, tmp_path: Path) -> None:
    config = tmp_path / "study.toml"
    config.write_text('[study]\nindex = "flat,hnsw;IVF4,Flat;PQ7"\nbank-size = [16, 24]\nmethod = "random"\n')
    outcome = run_study(
        place,
        "--config",
        config,
        "-o",
        tmp_path / "new",
        "--dry-run",
        "--json",
        "-",
        sweep=("--gamma-d", "1/4"),
    )
    cells = [(cell["bank_size"], cell["index"]) for cell in outcome.document["cells"]]
    assert cells == [(size, index) for size in (16, 24) for index in ("flat", "hnsw", "IVF4,Flat", "PQ7")]


def test_no_such_category(place: Workplace) -> None:
    assert "'cabel'" in run_study(place, category="cabel").error_line


def test_folders_that_cannot_be_used(place: Workplace, done: Outcome, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for more in ((), ("--dry-run",)):
        assert "got a file" in run_study(place, "-o", tmp_path / "file", *more).error_line
    assert (tmp_path / "file").read_text() == "mine"
    before = tree(place.root / "study")
    for more in ((), ("--dry-run",)):
        assert "one of 'weave'" in run_study(place, *more, category="felt").error_line
    assert tree(place.root / "study") == before
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "study.json").write_text('{"category": "weave"}')
    assert "damaged study.json" in run_study(place, "-o", tmp_path / "odd").error_line


def test_two_at_once_are_refused(small: Callable[..., StudyReport], tmp_path: Path) -> None:
    told: list[str] = []

    def start_another(event: Event) -> None:
        if isinstance(event, StageAdvanced) and event.stage == "study" and not told:
            with pytest.raises(OSError, match="another study") as caught:
                small()
            told.append(str(caught.value))

    assert small(listener=start_another).measured == 2
    assert len(told) == 1


def test_an_image_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    spoilt = made_up.workplace(tmp_path, train=6, test=2)
    (spoilt.data / "weave" / "test" / "good" / "001.png").write_bytes(b"no image")
    outcome = run_study(spoilt, "--json", "-", sweep=ONE_CELL)
    assert outcome.code == 3
    assert outcome.document["images_rejected"] == 1
    assert outcome.document["rows"][0]["image_auroc"] is not None


def test_as_a_process(place: Workplace, tmp_path: Path) -> None:
    folders = ("--data-root", place.data, "--features-dir", place.features, "-o", tmp_path / "study")
    words = ["study", "-c", "weave", *folders, *NETWORK, *SWEEP, "--dry-run", "--json", "-"]
    ran = subprocess.run(
        [CONSOLE_SCRIPT, *map(str, words)],
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran
    assert len(json.loads(ran.stdout)["cells"]) == 6


def test_the_sweep_is_pruned_or_whole() -> None:
    cells = StudySpec().cells()
    assert len(cells) == 3 * 5 + 3 + 2
    assert len(set(cells)) == len(cells)
    assert len(StudySpec(is_full=True).cells()) == 4 * 3 * 3 * 5
    only = StudySpec(methods=("random",), bank_sizes=(5,), gamma_ds=(0.5,), indexes=("hnsw",)).cells()
    assert [(cell.method, cell.bank_size, cell.gamma_d, cell.index) for cell in only] == [
        ("random", 5, 0.5, "hnsw")
    ]
    banks = [cell.bank for cell in StudySpec(is_full=True).cells()]
    assert len({bank for bank, before in zip(banks, [None, *banks], strict=False) if bank != before}) == 36


def test_no_axis_may_be_empty() -> None:
    with pytest.raises(SpecError, match="got none"):
        StudySpec(indexes=())


def test_recall_against_loops() -> None:
    """IVF with one probe against every distance in float64; duplicates and ties are found by either."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((300, 6)).astype(np.float32)
    vectors[7] = vectors[3]
    queries = np.concatenate([draw.standard_normal((80, 6)), vectors[:5]]).astype(np.float32)
    choice = make_index(
        vectors, IndexSpec(factory="IVF16,Flat", min_recall=0.05), queries, k=3, patches_per_image=8, seed=0
    )
    assert choice.index is not None
    choice.index.tuned({"nprobe": 1}, 3)
    bank = MemoryBank(vectors, torch.device("cpu"), choice.index)
    first, third = measure_recall(bank, torch.from_numpy(queries))
    assert 0.2 < first < 1
    ids = bank.search(torch.from_numpy(queries), 3, exact=True).ids.numpy()
    found_first = found_three = 0
    for query, row in zip(queries.astype(np.float64), ids, strict=True):
        distances = np.square(vectors.astype(np.float64) - query).sum(axis=1)
        limits = np.sort(distances)[:3] * (1 + 1e-5)
        found_first += distances[row].min() <= limits[0]
        found_three += int((distances[row] <= limits[2]).sum())
    assert first == pytest.approx(found_first / len(queries))
    assert third == pytest.approx(found_three / (3 * len(queries)))
    assert measure_recall(MemoryBank(vectors, torch.device("cpu")), torch.from_numpy(queries)) == (1.0, 1.0)


def test_the_frontier_is_of_memory_latency_and_accuracy() -> None:
    def row(name: str, resident: int, ms: float, auroc: float | None, recall: float = 1.0) -> StudyRow:
        base = replace(made_up_rows()[0], index=name, on_frontier=False, recall_at_1=recall)
        return replace(base, resident_bytes=resident, image_ms_p50=ms, image_auroc=auroc)

    rows = [row("a", 10, 5, 0.9), row("b", 10, 5, 0.8), row("c", 5, 9, 0.7), row("d", 20, 4, None)]
    assert [one.index for one in with_frontier(rows) if one.on_frontier] == ["a", "c"]
    unlabelled = [row("a", 10, 5, None, 0.9), row("b", 10, 5, None, 1.0)]
    assert [one.index for one in with_frontier(unlabelled) if one.on_frontier] == ["b"]
    failed = made_up_rows()[-1]
    assert not with_frontier([failed])[0].on_frontier


def test_guesses_follow_what_was_measured() -> None:
    assert pace([]) == 1
    assert pace([(6.0, 2.0), (3.0, 1.0)]) == 3
    assert [duration(seconds) for seconds in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]


def test_without_its_libraries_it_stops_before_the_work(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise OutputError(expected="plotly", got="nothing", remedy="install it")

    monkeypatch.setattr(study_module, "require_plotly", missing)
    assert "expected plotly" in run_study(place, "-o", tmp_path / "new").error_line
    assert not (tmp_path / "new").exists()
