"""The page of a scored folder, opened in a real browser; and what it is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from scored_rows import (
    HOSTILE_FOLDER,
    HOSTILE_NAME,
    THRESHOLD,
    Scored,
    page_of,
    scored_rows,
)

from cfa_index import SpecError
from cfa_index.report import score_survey, write_score_page

COUNT = 400


def hostile_rows() -> Scored:
    """Rows whose highest score has a hostile name, in a hostile folder; and an error of that kind."""
    rows = scored_rows(COUNT)
    rows.uris[4] = f"{HOSTILE_FOLDER}/{HOSTILE_NAME}"
    rows.scores[4] = 3.0
    rows.uris[7] = f"{HOSTILE_FOLDER}/x.png"
    rows.errors[7] = f"expected no {HOSTILE_FOLDER}{HOSTILE_NAME}, got one"
    return rows


@pytest.fixture(scope="module")
def rows() -> Scored:
    return hostile_rows()


@pytest.fixture(scope="module")
def file(rows: Scored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    write_score_page(folder / "report.html", page_of(rows, folder))
    return folder / "report.html"


class Opened:
    """A page that asks for nothing but its own files, and raises and alerts nothing."""

    def __init__(self, browser: Browser, file: Path, width: int = 1280, height: int = 800) -> None:
        self._context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self._context.new_page()
        self.requests: list[str] = []
        self._wrong: list[str] = []
        self._folder = file.parent.as_uri() + "/"
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self._wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self._wrong.append(dialog.message))
        self.page.on("console", lambda message: self._wrong.append(message.text))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("#plot svg")

    def close(self) -> None:
        own = [url for url in self.requests if url.startswith(("data:", self._folder))]
        assert own == self.requests
        assert self._wrong == []
        self._context.close()


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    opened = Opened(browser, file)
    yield opened.page
    opened.close()


def tile(page: Page, name: str) -> int:
    """The number of a tile."""
    return int((page.locator(f".tile.{name} b").text_content() or "").replace(",", ""))


def marked(page: Page) -> list[str]:
    """The verdicts that the gallery shows."""
    return [text.split()[-1] for text in page.locator("#gallery li:visible .mark").all_text_contents()]


def test_the_slider_and_the_field_recount_and_mark_again(page: Page, rows: Scored) -> None:
    errors = sum(bool(error) for error in rows.errors)
    assert tile(page, "images") == COUNT
    assert tile(page, "rejected") == errors
    assert tile(page, "anomalous") == rows.above(THRESHOLD)
    assert tile(page, "good") == COUNT - errors - rows.above(THRESHOLD)
    assert set(marked(page)) == {"anomalous"}
    expect(page.locator("#reset")).to_be_disabled()
    limits = []
    for place in ("100", "333", "500", "990"):
        page.locator("#slider").fill(place)
        limits.append(float(page.locator("#threshold").input_value()))
        assert tile(page, "anomalous") == rows.above(limits[-1])
        assert tile(page, "good") == COUNT - errors - rows.above(limits[-1])
        shown = np.sort(rows.scores[np.isfinite(rows.scores)])[::-1][:12]
        assert marked(page) == ["anomalous" if score > limits[-1] else "good" for score in shown]
    assert len(set(limits)) == 4
    expect(page.locator("#note")).to_contain_text(f"--threshold {limits[-1]}")
    exact = float(np.sort(rows.scores[np.isfinite(rows.scores)])[100])
    page.locator("#threshold").fill(repr(exact))  # a score that is the threshold is not above it
    assert tile(page, "anomalous") == rows.above(exact)
    page.locator("#reset").click()
    assert tile(page, "anomalous") == rows.above(THRESHOLD)
    assert page.locator("#threshold").input_value() == str(THRESHOLD)
    box = page.locator("#plot").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + 60)
    assert tile(page, "anomalous") == rows.above(float(page.locator("#threshold").input_value()))
    assert tile(page, "anomalous") < rows.above(THRESHOLD)


def test_what_is_shown_follows_folder_reason_and_verdict(page: Page, rows: Scored) -> None:
    page.locator("#folder").select_option(
        label=f"right ({sum(uri.startswith('right') for uri in rows.uris)})"
    )
    assert tile(page, "anomalous") == rows.above(THRESHOLD, "right")
    names = page.locator("#gallery li:visible .uri").all_text_contents()
    assert names
    assert all(name.startswith("right/") for name in names)
    assert all(
        name.startswith("right/") for name in page.locator("#bottom td:first-child").all_text_contents()
    )
    page.locator("#folder").select_option("")
    page.locator("#slider").fill("800")
    verdicts = marked(page)
    for wanted in ("good", "anomalous"):
        page.locator("#show").get_by_role("button", name=wanted).click()
        assert marked(page) == [verdict for verdict in verdicts if verdict == wanted]
    page.locator("#threshold").fill("99")
    assert marked(page) == []
    expect(page.locator("#gallery-empty")).to_be_visible()

    lines = page.locator("#rejected tbody tr")
    expect(lines).to_have_count(sum(bool(error) for error in rows.errors))
    gone = sum("No such file" in error for error in rows.errors)
    reason = page.locator("#reason option", has_text="No such file")
    expect(reason).to_have_text(f"to read FILE, got No such file or directory ({gone})")
    page.locator("#reason").select_option(reason.get_attribute("value"))
    expect(lines).to_have_count(gone)
    assert all("No such file" in text for text in lines.all_text_contents())
    page.locator("#folder").select_option("2")  # the hostile one and left come before
    of_right = sum(
        "No such file" in e and u.startswith("right") for u, e in zip(rows.uris, rows.errors, strict=True)
    )
    expect(lines).to_have_count(of_right)


def test_a_click_opens_the_panel_and_the_keyboard_steps_and_closes(page: Page, rows: Scored) -> None:
    cards, viewer, panel = page.locator("#gallery button"), page.locator("#viewer"), page.locator("#panel")
    expect(viewer).to_be_hidden()
    cards.nth(1).click()
    expect(viewer).to_be_visible()
    first = panel.get_attribute("src")
    assert re.fullmatch(r"report/\d{8}_panel\.png", first or "")
    expect(panel).to_have_js_property("naturalWidth", 600)
    expect(page.locator("#viewer-facts")).to_contain_text("2 of 12")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-facts")).to_contain_text("3 of 12")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none before the first
    expect(page.locator("#viewer-facts")).to_contain_text("1 of 12")
    expect(page.locator("#viewer-name")).to_have_text(f"{HOSTILE_FOLDER}/{HOSTILE_NAME}")
    assert HOSTILE_NAME in (panel.get_attribute("alt") or "")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(cards.first).to_be_focused()
    page.keyboard.press("Enter")
    expect(viewer).to_be_visible()
    page.locator("#close").click()
    expect(viewer).to_be_hidden()


def test_hostile_names_are_text(page: Page) -> None:
    expect(page.locator("h1")).to_have_text(f"cable: {HOSTILE_NAME}")
    expect(page.locator("#gallery .uri").first).to_have_text(f"{HOSTILE_FOLDER}/{HOSTILE_NAME}")
    expect(page.locator("#facts")).to_contain_text(HOSTILE_FOLDER)
    expect(page.locator("#rejected")).to_contain_text(f"no {HOSTILE_FOLDER}{HOSTILE_NAME}")
    expect(page.locator("#credit")).to_have_text(f"credit {HOSTILE_NAME}")
    assert page.locator("#folder option", has_text="script>").count() == 1
    assert page.evaluate("document.scripts.length") == 2
    assert page.locator("img:not(#gallery img, #panel)").count() == 0


def test_no_script_but_our_own_runs(browser: Browser, file: Path, tmp_path: Path) -> None:
    """As if the escaping had failed: the markup is in the page, and the policy stops it."""
    text = file.read_text().replace(
        "<main>", "<main><script>document.title = 'taken'</script><b onclick='x()'>", 1
    )
    (tmp_path / "report.html").write_text(text)
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#plot svg")
    assert page.title() == f"cable: {HOSTILE_NAME}"
    assert any("Content Security Policy" in text for text in refused)
    page.close()


def test_the_markup_has_no_other_element_than_ours(file: Path) -> None:
    """Whatever the browser forgives: the page as a parser sees it."""
    opened: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            opened.append(tag)
            assert not {name for name, _ in attrs} & {"src", "onerror", "onclick", "style"}

    Parser().feed(file.read_text())
    assert opened.count("script") == 2
    assert opened.count("img") == 1  # the panel, without a source until it is opened


def test_pictures_load_when_they_come_into_view(browser: Browser, tmp_path: Path) -> None:
    rows = scored_rows(COUNT)
    write_score_page(tmp_path / "report.html", page_of(rows, tmp_path, gallery=200))
    opened = Opened(browser, tmp_path / "report.html", width=360, height=640)
    pictures = opened.page.locator("#gallery img")
    expect(pictures).to_have_count(200)
    assert all(picture.get_attribute("loading") == "lazy" for picture in pictures.all()[:3])
    expect(pictures.first).to_have_js_property("naturalWidth", 32)
    asked = {url for url in opened.requests if url.endswith("_thumb.jpg")}
    assert 0 < len(asked) < 100
    pictures.last.scroll_into_view_if_needed()
    expect(pictures.last).to_have_js_property("naturalWidth", 32)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    opened.close()


def test_a_hundred_thousand_rows_are_a_small_page_that_recounts(browser: Browser, tmp_path: Path) -> None:
    rows = scored_rows(100_000, tuple(f"line {line}/day {day}" for line in range(4) for day in range(5)))
    write_score_page(tmp_path / "report.html", page_of(rows, tmp_path, gallery=60))
    assert (tmp_path / "report.html").stat().st_size < 700_000
    opened = Opened(browser, tmp_path / "report.html")
    for place in ("200", "700"):
        opened.page.locator("#slider").fill(place)
        limit = float(opened.page.locator("#threshold").input_value())
        assert tile(opened.page, "anomalous") == rows.above(limit)
    opened.close()


def test_binned_scores_count_exactly_at_edges(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_survey, "EXACT_ROWS", 100)
    rows = scored_rows(COUNT)
    page = page_of(rows, tmp_path)
    assert page.edges is not None
    assert THRESHOLD in page.edges
    write_score_page(tmp_path / "report.html", page)
    opened = Opened(browser, tmp_path / "report.html")
    expect(opened.page.locator("#rounded")).to_contain_text("4,096 bins")
    assert tile(opened.page, "anomalous") == rows.above(THRESHOLD)
    for text in ("0.3", "0.81234", "1.1"):
        opened.page.locator("#threshold").fill(text)
        edge = float(page.edges[np.abs(page.edges - float(text)).argmin()])
        assert tile(opened.page, "anomalous") == rows.above(edge)
        expect(opened.page.locator("#note")).to_contain_text(repr(edge))
    for text, count in (("-5", rows.above(-5)), ("99", 0)):
        opened.page.locator("#threshold").fill(text)
        assert tile(opened.page, "anomalous") == count
    opened.close()


@pytest.mark.parametrize("case", ["no threshold", "nothing scored"])
def test_pages_with_little_to_say(browser: Browser, tmp_path: Path, case: str) -> None:
    rows = scored_rows(30)
    if case == "nothing scored":
        rows.scores[:] = np.nan
    page = page_of(rows)
    write_score_page(
        tmp_path / "report.html", page if case == "nothing scored" else replace(page, threshold=None)
    )
    opened = Opened(browser, tmp_path / "report.html")
    if case == "no threshold":
        expect(opened.page.locator(".tile.anomalous")).to_contain_text("–")
        expect(opened.page.locator("#gallery .none").first).to_have_text("no picture")
        expect(opened.page.locator("#gallery button").first).to_be_disabled()
        opened.page.locator("#slider").fill("500")
        assert tile(opened.page, "anomalous") == rows.above(
            float(opened.page.locator("#threshold").input_value())
        )
    else:
        assert tile(opened.page, "rejected") == 30
        assert tile(opened.page, "anomalous") == 0
        expect(opened.page.locator("#gallery-empty")).to_have_text("No image has a score.")
        expect(opened.page.locator("#slider")).to_be_disabled()
    opened.close()


def test_folders_of_another_kind_are_refused() -> None:
    page = page_of(scored_rows(30))
    with pytest.raises(SpecError, match="uint32"):
        replace(page, edges=np.linspace(0, 1, 5))
