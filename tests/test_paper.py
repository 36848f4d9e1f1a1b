from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.paper import published as p, tables
from benchmarks.paper.__main__ import main
from benchmarks.paper.cells import Cell, Options, paper, recommended
from benchmarks.paper.made_up import write_dataset, write_weights
from benchmarks.paper.plan import Entry, cells, entries
from benchmarks.paper.run import Result, Site, read_result, run

ALL = Options(seeds=(0, 1))
BOTH = Options(seeds=(0, 1), protocols=("last", "published"), ablations=True)
QUICK = Options(categories=("carpet",), seeds=(0,), quick=True)


def tiny(**changes: object) -> Cell:
    """A cell that takes a fraction of a second."""
    member = paper(QUICK, "resnet18", seed=0, geometry="whole")
    member = replace(member, features=replace(member.features, strides=(8, 16)))
    return replace(Cell(category="carpet", members=(member,), quick=True), **changes)  # type: ignore[arg-type] # fields by name


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_weights(root / "weights", ["resnet18"])
    return write_dataset(root, classes=("carpet",), train=4, test=2)


def site(data_root: Path, output: Path) -> Site:
    weights = data_root / "weights"
    return Site(data_root=data_root, output=output, weights_dir=weights, device="cpu", threads=1)


# Published numbers


def test_published_columns_average_to_the_published_averages() -> None:
    for system, printed in p.TABLE_4_AVERAGE.items():
        column = {name: numbers[system] for name, numbers in p.TABLE_4.items()}
        assert set(column) == set(p.CLASSES)
        if system == "CFA":
            assert fmean(column.values()) == pytest.approx(99.17, abs=0.005)  # with the misprint
            column["carpet"] = 99.5  # the README
        # CutPaste's column, copied from elsewhere, does not have the average that is printed below it.
        expected = 96.16 if system == "CutPaste" else printed
        assert fmean(column.values()) == pytest.approx(expected, abs=0.06), system
        for group in p.GROUPS if system in ("CFA", "CFA++") else ():
            mean = fmean(column[name] for name in p.GROUPS[group])
            assert mean == pytest.approx(p.TABLE_2["image_auroc", group][system], abs=0.06)


def test_which_printed_averages_do_not_follow_from_textures_and_objects() -> None:
    odd = set()
    for table, numbers in (("2", p.TABLE_2), ("3", p.TABLE_3)):
        for metric in {metric for metric, _ in numbers}:
            for system, printed in numbers[metric, "all"].items():
                mean = (
                    5 * numbers[metric, "textures"][system] + 10 * numbers[metric, "objects"][system]
                ) / 15
                if abs(mean - printed) > 0.11:
                    odd.add((table, metric, system))
    # The first is noted as a misprint; the others are off by 0.2 and copied from elsewhere.
    assert odd == {
        ("2", "pixel_auroc", "PaDiM"),
        ("2", "pixel_auroc", "PatchCore"),
        ("3", "image_auroc", "SPADE (WRN50-2)"),
    }


# The plan


def test_a_cell_of_several_tables_is_planned_once() -> None:
    def cells_at(table: str, row: str, column: str) -> set[Cell]:
        return {
            cell
            for entry in entries(ALL)
            if (entry.table, entry.row, entry.column) == (table, row, column)
            for one in entry.classes
            for cell in one
        }

    cfa_pp = cells_at("2", "P-AUROC, all", "CFA++")
    assert len(cfa_pp) == 15 * 2
    assert (
        cfa_pp == cells_at("5", "L_att + L_rep", "WRN50-2 P-AUROC") == cells_at("6", "gamma = 1", "P-AUROC")
    )
    assert cells_at("5", "L_att + L_rep", "ResNet18 I-AUROC") == cells_at("7", "ResNet18, CFA++", "I-AUROC")
    planned = cells(BOTH)
    assert len(planned) == len(set(planned))


def test_cells_of_a_group_run_in_a_row() -> None:
    groups = [group for group, _ in groupby(cells(BOTH), key=lambda cell: cell.group)]
    assert len(groups) == len(set(groups))


def test_every_entry_that_is_not_copied_has_cells_of_its_classes() -> None:
    for entry in entries(BOTH):
        if entry.copied or entry.metric == "images_per_second":
            assert not entry.classes
            continue
        names = {cell.category for one in entry.classes for cell in one}
        assert len(names) == entry.of, entry
        assert {cell.protocol for one in entry.classes for cell in one} == (
            {"published"} if "[published protocol]" in entry.column else {"last"}
        )


def test_the_published_protocol_is_run_only_when_asked() -> None:
    assert {cell.protocol for cell in cells(ALL)} == {"last"}
    assert {cell.seed for cell in cells(BOTH) if cell.protocol == "published"} == {0}


def test_the_paper_settings_are_those_of_the_preset() -> None:
    spec = paper(ALL, "efficientnet_b5", seed=1, geometry="crop")
    assert spec.descriptor.width(568) == 2 * 568
    assert (spec.train.epochs, spec.train.attract, spec.train.repel) == (30, 3, 3)
    text = Cell(category="bottle", members=(spec,)).settings_text()
    assert text == "`paper` with features.backbone=efficientnet_b5, descriptor.expansion=2.0; protocol `last`"
    assert recommended(ALL, "wide_resnet50_2", seed=2).preset == "recommended"


# Tables


def scored(**metrics: float | None) -> Result:
    return Result(metrics=metrics)


def entry_of(*classes: tuple[Cell, ...], **changes: object) -> Entry:
    base = Entry(table="2", row="r", column="c", metric="image_auroc", published=90.0, classes=classes)
    return replace(base, **changes)  # type: ignore[arg-type] # fields by name


def seeded(category: str, seed: int) -> Cell:
    return Cell(category=category, members=(paper(ALL, "resnet18", seed=seed, geometry="crop"),))


def test_a_value_is_the_mean_over_classes_then_over_seeds() -> None:
    places = [seeded(name, seed) for name in ("bottle", "carpet") for seed in (0, 1)]
    results = {cell: scored(image_auroc=value) for cell, value in zip(places, (0.9, 0.8, 1, 1), strict=True)}
    entry = entry_of(*((cell,) for cell in places), of=2)
    value = tables.value_of(entry, results)
    assert value.mean == pytest.approx(92.5)
    assert value.deviation == pytest.approx(50**0.5 / 2)  # of 95 and 90, one seed taken off
    assert (value.seeds, value.classes) == (2, 2)
    assert tables.difference(entry, value) == pytest.approx(2.5)
    assert tables.difference(replace(entry, of=15), value) is None
    misprint = replace(entry, of=2, table="4", row="carpet", column="CFA")
    assert tables.difference(misprint, value) is None


def test_of_alternatives_the_better_counts_for_each_metric_by_itself() -> None:
    first, second = seeded("bottle", 0), seeded("bottle", 1)
    results = {
        first: scored(image_auroc=0.9, pixel_auroc=0.7),
        second: scored(image_auroc=0.8, pixel_auroc=0.75),
    }
    for metric, expected in (("image_auroc", 90), ("pixel_auroc", 75)):
        value = tables.value_of(entry_of((first, second), metric=metric), results)
        assert value.mean == pytest.approx(expected)


def test_no_mean_of_cells_that_failed_are_missing_or_have_no_such_metric() -> None:
    good, bad = seeded("bottle", 0), seeded("carpet", 0)
    entry = entry_of((good,), (bad,))
    done = {good: scored(image_auroc=0.9)}
    outcomes: dict[str, Mapping[Cell, Result]] = {
        "1 of 2 failed": {**done, bad: Result(error="no")},
        "1 of 2 not run yet": done,
        "1 of 2 without this metric": {**done, bad: scored(image_auroc=None)},
    }
    for note, results in outcomes.items():
        value = tables.value_of(entry, results)
        assert (value.mean, value.note) == (None, note)
    assert "90.0 / 1 of 2 failed / –" in tables._text(
        entry, tables.value_of(entry, outcomes["1 of 2 failed"])
    )


def test_markdown_labels_what_was_copied_misprinted_made_up_or_chosen_on_the_test_set() -> None:
    text = tables.markdown(replace(BOTH, categories=("bottle",), quick=True), {})
    for words in ("96.6*", "(misprint)", "As accuracy they mean nothing", "1 of 15 classes", "## Table A"):
        assert words in text
    assert text.count("[published protocol]") > 10
    assert "[published protocol]" not in tables.markdown(ALL, {})


def test_csv_and_json_hold_every_number_with_its_settings() -> None:
    options = replace(QUICK, tables=(7,))
    results = {cell: scored(image_auroc=0.9, pixel_auroc=0.8) for cell in cells(options)}
    rows = tables.records(options, results)
    assert len(tables.csv_text(rows).splitlines()) == 1 + len(rows) == 1 + 12
    document = json.loads(json.dumps(tables.document(options, results), allow_nan=False))
    ours = [row for row in document["numbers"] if row["ours"] is not None]
    assert len(ours) == 6
    assert all(row["settings"] and row["difference"] is None and row["classes"] == 1 for row in ours)


# Running


def test_a_run_that_was_killed_goes_on_and_damaged_cells_are_run_again(
    data_root: Path, tmp_path: Path
) -> None:
    here = site(data_root, tmp_path)
    first = tiny()
    member = replace(first.members[0], train=replace(first.members[0].train, epochs=0))
    second = tiny(members=(member,))
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if line.startswith("[1/2]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([first, second], here, say=stop, after_group=lambda _: None)
    files = list((tmp_path / "cells").iterdir())
    assert len(files) == 1
    before = files[0].read_bytes()

    groups: list[int] = []
    results = run([first, second], here, say=said.append, after_group=lambda r: groups.append(len(r)))
    assert files[0].read_bytes() == before
    assert "1 of 2 cells are there already" in said
    assert groups == [2]
    assert not list((tmp_path / "work").iterdir())
    for cell, result in results.items():
        assert not result.error, result
        assert {"image_auroc", "pixel_auroc", "aupro"} <= set(result.metrics)
        assert read_result(here, cell) == result

    files[0].write_bytes(before.replace(b'"image_auroc": ', b'"image_auroc": 1'))
    assert read_result(here, first) is None
    assert (
        run([first], here, say=said.append, after_group=lambda _: None)[first].metrics
        == results[first].metrics
    )


def test_the_published_protocol_is_at_least_as_good_as_the_last_epoch_and_rotated_data_are_drawn(
    data_root: Path, tmp_path: Path
) -> None:
    here = site(data_root, tmp_path)
    planned = [tiny(protocol="published"), tiny(), tiny(rotated=True)]
    best, last, rotated = run(planned, here, say=lambda _: None, after_group=lambda _: None).values()
    assert not best.error + last.error + rotated.error
    for name, value in last.metrics.items():
        assert value is not None
        assert (best.metrics[name] or 0) >= value - 1e-6, name
    assert best.details["best_epoch"]["image_auroc"] in (1, 2)
    assert rotated.metrics != last.metrics
    assert (tmp_path / "rotated" / "seed-0" / "carpet" / "test" / "good" / "000.png").exists()


def test_a_cell_that_fails_is_recorded_and_tried_again_while_others_go_on(
    data_root: Path, tmp_path: Path
) -> None:
    here = site(data_root, tmp_path)
    bad, good = tiny(category="grid"), tiny()
    results = run([bad, good], here, say=lambda _: None, after_group=lambda _: None)
    assert "expected category 'grid'" in results[bad].error
    assert "\n" not in results[bad].error
    assert not results[good].error
    kept = read_result(here, bad)
    assert kept is not None
    assert kept.error == results[bad].error
    write_dataset(data_root, classes=("carpet", "grid"), train=4, test=2)
    assert not run([bad], here, say=lambda _: None, after_group=lambda _: None)[bad].error


def test_the_command_says_what_would_run_and_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--output", str(tmp_path)]
    assert main([*arguments, "--tables", "5", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("12 cells, 16 trainings\n")
    (tmp_path / "empty").mkdir()
    assert main(["--data-root", str(tmp_path / "empty"), "--output", str(tmp_path)]) == 1
    assert "expected classes of MVTec AD" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--tables", "8"])
