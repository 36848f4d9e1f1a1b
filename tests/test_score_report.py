"""report.html of a scored folder: made from its parts, with pictures of the images that are still there."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scored_rows import HOSTILE_FOLDER, HOSTILE_NAME

from cfa_index import Event, ModelBundle, Notice, StageAdvanced, StageStarted, query, score_folder
from cfa_index.places import LocalPlace
from cfa_index.workflows.score_report import write_report

SHARD = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scored folder."""

    bundle: ModelBundle
    images: Path
    output: Path
    threshold: float | None

    def write(self, **options: Any) -> list[Event]:
        events: list[Event] = []
        write_report(
            self.bundle,
            LocalPlace(self.images),
            LocalPlace(self.output),
            shard_images=SHARD,
            threshold=self.threshold,
            listener=events.append,
            **options,
        )
        return events

    @property
    def document(self) -> Any:
        text = (self.output / "report.html").read_text()
        embedded = re.search(r'<script type="application/json" id="scores">(.*?)</script>', text, re.DOTALL)
        assert embedded is not None
        return json.loads(embedded[1])

    @property
    def pictures(self) -> set[str]:
        return {path.name for path in (self.output / "report").iterdir()}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Some good images, holes, broken files and names made to do harm."""
    root = tmp_path_factory.mktemp("scored")
    place = made_up.built_workplace(root / "model")
    images, output = root / "images", root / "out"
    made_up.write_good(images / "good", 6, first=1000)
    for number in range(3):
        pixels = made_up.texture(2000 + number)
        pixels[10:30, 10:30] = (250, 20, 20)
        made_up.write_image(images / "hole" / f"{number}.png", pixels)
    made_up.write_image(images / HOSTILE_FOLDER / HOSTILE_NAME, pixels)
    made_up.write_image(images / os.fsdecode(b"hole/\xff odd.png"), pixels[::-1].copy())
    made_up.write_broken(images / "hole")
    bundle = ModelBundle.load(place.models / "weave")
    report = score_folder(bundle, images, output, shard_images=SHARD, batch_size=4)
    return Case(bundle=bundle, images=images, output=output, threshold=report.threshold)


@pytest.fixture
def case(scored: Case, tmp_path: Path) -> Iterator[Case]:
    """A copy, to be changed by one test."""
    images, output = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scored.images, images)
    shutil.copytree(scored.output, output)
    yield replace(scored, images=images, output=output)
    assert made_up.leftovers(output) == []


def test_the_page_says_what_the_parts_say_and_shows_the_highest(case: Case) -> None:
    events = case.write(gallery=5, credit="A. Maker", facts=[("images/s", "12")])
    document = case.document
    rows = list(made_rows(case))
    scores = {uri: score for uri, score, _ in rows if score is not None}
    expected = sorted(scores, key=lambda uri: (-scores[uri], uri))[:5]
    assert {row["uri"] for row in document["top"]} == set(expected)
    assert [row["score"] for row in document["top"]] == sorted(scores.values(), reverse=True)[:5]
    assert sum(sum(folder["rejected"]) for folder in document["folders"]) == 5
    assert sum(folder["values"] for folder in document["folders"]) == len(scores) == 11
    assert {folder["name"] for folder in document["folders"]} == {"good", "hole", HOSTILE_FOLDER}
    assert {row["uri"] for row in document["rejected"]} == {uri for uri, score, _ in rows if score is None}
    assert ["images/s", "12"] in document["facts"]
    assert ["folder", str(case.images)] in document["facts"]
    assert document["threshold"] == case.threshold

    files = {name for row in document["top"] for name in (row["thumbnail"], row["panel"])}
    assert files == {f"report/{name}" for name in case.pictures}
    assert all(re.fullmatch(r"report/\d{8}_(thumb\.jpg|panel\.png)", name) for name in files)
    assert len(files) == 10
    for row in document["top"]:
        with Image.open(case.output / row["thumbnail"]) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (64, 64))
            assert thumbnail.getexif()[0x8298] == "A. Maker"
        with Image.open(case.output / row["panel"]) as panel:
            panel.load()
            assert panel.info["Copyright"] == "A. Maker"
    assert StageStarted(stage="report", total=5, unit="images") in events
    assert sum(isinstance(event, StageAdvanced) for event in events) == 5


def made_rows(case: Case) -> Iterator[tuple[str, float | None, str | None]]:
    """(uri, score, error) of all rows."""
    for part in sorted((case.output / "parts").iterdir()):
        for row in pq.read_table(part).to_pylist():
            yield row["uri"], row["score"], row["error"]


def test_a_second_report_replaces_the_first_and_takes_its_pictures_away(case: Case) -> None:
    case.write(gallery=4)
    assert len(case.pictures) == 8
    (case.output / "report" / "mine.txt").write_text("not a picture of ours")
    before = case.document["top"]
    case.write(gallery=2)
    assert case.document["top"] == before[:2]
    assert len(case.pictures) == 5
    assert "mine.txt" in case.pictures
    case.write(gallery=0)
    assert case.pictures == {"mine.txt"}
    assert case.document["top"] == []


def test_images_that_are_gone_or_broken_since_have_no_picture(case: Case) -> None:
    case.write(gallery=4)
    first, second = (row["uri"] for row in case.document["top"][:2])
    for uri, content in ((first, None), (second, b"")):
        file = next(path for path in case.images.rglob("*.png") if os.fsencode(path).endswith(tail(uri)))
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    events = case.write(gallery=4)
    assert [bool(row["thumbnail"]) for row in case.document["top"]] == [False, False, True, True]
    assert [event.message[:10] for event in events if isinstance(event, Notice)] == ["no picture"] * 2
    assert len(case.pictures) == 4


def test_pictures_are_of_images_as_large_as_the_run_took(case: Case) -> None:
    events = case.write(gallery=4, max_pixels=10)
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert [bool(row["thumbnail"]) for row in case.document["top"]] == [False] * 4
    assert all("at most 1e-05 megapixels" in message for message in messages)


def tail(uri: str) -> bytes:
    """The end of a file's path, of one with a stray byte what comes after it."""
    return os.fsencode(uri.rpartition("\\udcff")[2])


def test_a_picture_shows_where_the_map_is_high(case: Case) -> None:
    case.write(gallery=4)
    (row,) = (row for row in case.document["top"] if row["uri"] == "hole/0.png")
    with Image.open(case.output / row["thumbnail"]) as opened, Image.open(case.images / row["uri"]) as source:
        thumbnail, image = np.asarray(opened).astype(int), np.asarray(source).astype(int)
    anomaly_map = query(case.bundle, case.images / row["uri"]).verdict.anomaly_map
    changed = np.abs(thumbnail - image).mean(axis=2)
    assert changed[anomaly_map > np.quantile(anomaly_map, 0.9)].mean() > 2 * changed.mean()


def test_a_query_takes_the_content_of_a_file(case: Case) -> None:
    file = case.images / "hole" / "0.png"
    by_path, by_content = query(case.bundle, file), query(case.bundle, file.read_bytes())
    assert by_content.verdict.score == by_path.verdict.score
    assert by_content.path == ""


def test_the_hostile_page_does_nothing_in_a_browser(case: Case, browser: Any) -> None:
    case.write(gallery=4)
    page = browser.new_page()
    wrong: list[str] = []
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
    page.goto((case.output / "report.html").as_uri())
    card = page.locator("#gallery button", has_text=HOSTILE_NAME)
    card.click()
    assert page.locator("#viewer-name").text_content() == f"{HOSTILE_FOLDER}/{HOSTILE_NAME}"
    page.locator("#panel").evaluate("panel => panel.decode()")
    page.close()
    assert [text for text in wrong if not text.startswith("data:,")] == []
