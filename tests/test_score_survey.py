"""What a report holds of its rows, against counts made one by one."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from scored_rows import HOSTILE_FOLDER, HOSTILE_NAME, THRESHOLD, Scored, page_of, scored_rows

from cfa_index.report import ScoreRows, Survey, Tally, score_page_text, score_survey


def tallied(rows: Scored, *, threshold: float | None = THRESHOLD, top: int = 9, bottom: int = 4) -> Tally:
    survey = Survey()
    for part in rows.parts(64):
        survey.add(part)
    tally = Tally(survey, threshold, top=top, bottom=bottom)
    for part in rows.parts(64):
        tally.add(part)
    return tally


def named(names: list[str]) -> Scored:
    """Images of the score 1 with these names."""
    return Scored(uris=names, scores=np.ones(len(names), dtype=np.float32), errors=[""] * len(names))


def test_every_row_is_counted_once_in_its_folder() -> None:
    rows = scored_rows(500, ("a", "a/b", "c"))
    tally = tallied(rows)
    folders = tally.folder_scores()
    assert [folder.name for folder in folders] == ["a", "a/b", "c"]
    for folder in folders:
        own = [number for number, uri in enumerate(rows.uris) if uri.rpartition("/")[0] == folder.name]
        expected = np.sort([rows.scores[number] for number in own if np.isfinite(rows.scores[number])])
        assert (folder.values == expected).all()
        assert sum(folder.rejected) == sum(bool(rows.errors[number]) for number in own)
    assert len(tally.rejected) == sum(map(bool, rows.errors))


def test_the_highest_and_the_lowest_are_those_of_a_sort() -> None:
    rows = scored_rows(500)
    rows.scores[[20, 30, 40]] = 9.0  # of equal scores the first images
    order = sorted(
        (number for number in range(500) if np.isfinite(rows.scores[number])),
        key=lambda number: (-rows.scores[number], number),
    )
    tally = tallied(rows)
    assert [image_id for _, image_id, _ in tally.top] == order[:9]
    assert [image_id for _, image_id, _ in tally.top][:3] == [20, 30, 40]
    assert {image_id for _, image_id, _ in tally.bottom} == set(order[-4:])
    assert tally.bottom[0][0] == rows.scores[order[-1]]
    few = tallied(scored_rows(5), top=9)
    assert (len(few.top), few.bottom) == (5, [])
    assert tallied(rows, top=0, bottom=0).top == []


@pytest.mark.parametrize("threshold", [THRESHOLD, None, 99.0, -1.0])
def test_bins_count_what_lies_above_each_edge(
    threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = scored_rows(500)
    monkeypatch.setattr(score_survey, "EXACT_ROWS", 499 - sum(map(bool, rows.errors)))
    tally = tallied(rows, threshold=threshold)
    edges = tally.edges
    assert edges is not None
    assert (np.diff(edges) > 0).all()
    assert (threshold in edges) == (threshold == THRESHOLD)
    counts = np.sum([folder.values for folder in tally.folder_scores()], axis=0)
    for at in range(0, len(edges), 311):
        assert counts[at:].sum() == rows.above(float(edges[at]))
    assert counts.sum() == rows.above(float(edges[0])) == np.isfinite(rows.scores).sum()


def test_equal_scores_can_be_binned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_survey, "EXACT_ROWS", 2)
    tally = tallied(named(["x.png"] * 5), threshold=1.0)
    assert tally.folder_scores()[0].values.sum() == 5


def test_deep_trees_are_cut_where_folders_are_few_enough() -> None:
    deep = [f"{plant}/{day}/{hour}/x.png" for plant in "ab" for day in range(9) for hour in range(24)]
    folders = tallied(named([*deep, "top.png", "a/loose.png"])).folders
    days = [f"{plant}/{day}" for plant in "ab" for day in range(9)]
    assert folders.names == tuple(sorted(["", "a", *days]))
    assert folders.labels[0] == "(not in a subfolder)"
    assert folders.places(["a/3/7/x.png", "a/y.png"]).tolist() == [
        folders.names.index("a/3"),
        folders.names.index("a"),
    ]


def test_of_too_many_folders_the_last_ones_are_one() -> None:
    names = [f"{number:03d}/x.png" for number in range(300)]
    folders = tallied(named(names)).folder_scores()
    assert len(folders) == 100
    assert folders[-1].name == "(other folders)"
    assert len(folders[-1].values) == 201
    assert folders[98].name == "098"


def test_what_is_held_does_not_grow_with_the_rows() -> None:
    survey = Survey()
    for number in range(3000):
        uris = [f"{number}/{number}/x.png"]
        survey.add(
            ScoreRows(image_ids=np.array([number]), uris=uris, scores=np.ones(1, np.float32), errors=[""])
        )
    assert sum(map(len, survey._seen.values())) < 1000


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("expected an image in /data x/a/b.png, got 0 bytes; remove it", "an image, got 0 bytes"),
        ("expected an image in a/b.png, got 0 bytes; remove it", "an image, got 0 bytes"),
        (
            "expected a whole, undamaged image in the given bytes, got image file is truncated (12 bytes not "
            "processed); export it again",
            "a whole, undamaged image, got image file is truncated (N bytes not processed)",
        ),
        (
            "expected at most 64 megapixels, got 10000x10000 = 100.0 megapixels in /data/a/b.png; cut it",
            "at most 64 megapixels, got NxN = N megapixels",
        ),
        (
            "expected a png, jpg, bmp, tif or webp image in b.png, got a file that begins with b'this; is'; x",
            "a png, jpg, bmp, tif or webp image, got a file that begins with other bytes",
        ),
        ("", "unknown"),
        ("lost", "lost"),
    ],
)
def test_errors_that_differ_in_the_image_only_have_one_reason(error: str, reason: str) -> None:
    assert score_survey.reason_of(error, "a/b.png") == reason


def test_reasons_and_their_examples_are_bounded() -> None:
    rows = named([f"{number}.png" for number in range(2000)])
    rows.scores[:] = np.nan
    rows.errors[:] = [f"expected kind {'x' * (number % 40)}, got {'y' * 999}" for number in range(2000)]
    tally = tallied(rows)
    assert len(tally.reasons) == 21
    assert tally.reasons[-1] == "other reasons"
    assert sum(tally.folder_scores()[0].rejected) == 2000
    assert max(Counter(row.reason for row in tally.rejected).values()) == 25
    assert max(len(row.error) for row in tally.rejected) == 300


def test_the_data_of_a_page_end_no_element_and_read_back() -> None:
    rows = scored_rows(60)
    rows.uris[4] = f"{HOSTILE_FOLDER}/{HOSTILE_NAME}\u2028\udcff"
    rows.scores[4] = 7.0
    text = score_page_text(page_of(rows))
    embedded = re.findall(r'<script type="application/json" id="scores">(.*?)</script>', text, re.DOTALL)
    document = json.loads(embedded[0])
    assert document["top"][0]["uri"] == rows.uris[4]
    assert not set("<>&") & set(embedded[0])
    assert text.encode()  # no lone surrogate is left
