"""The page of a study, opened in a real browser; and what it is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from study_rows import made_up_row, made_up_rows

from cfa_index import OutputError
from cfa_index.report.study_page import ratio_text, write_study_page

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">'\"&amp;"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "study.html"
    hostile = made_up_row("ivf", 3136)
    hostile = type(hostile)(
        **{**vars(hostile), "index": f"IVF9,{HOSTILE}", "command": f"cfa-index build -c '{HOSTILE}'"}
    )
    write_study_page(
        path, [*made_up_rows(), hostile], title=f"Study of {HOSTILE}", facts=["20 images", HOSTILE]
    )
    return path


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    """The page at 1280x800, which asked for nothing and raised nothing until the test's end."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(file.as_uri())
    page.wait_for_selector("#plot .points path")
    yield page
    assert page.title() == f"Study of {HOSTILE}"
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert errors == []
    context.close()


def points(page: Page) -> Locator:
    return page.locator("#plot .points path")


def no_wider_than_the_window(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_a_point_tells_its_settings_and_gives_its_command(page: Page, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    point = points(page).nth(3)  # traces are by index, and three sizes are flat
    point.hover(force=True)
    told = page.locator("#plot .hoverlayer")
    expect(told).to_contain_text("pca-refine")
    expect(told).to_contain_text("hybrid, 784 × 152")
    expect(told).to_contain_text("gamma_d: 1/4")
    point.click(force=True)
    expect(page.locator("#status")).to_have_text("copied")
    expect(page.locator("#command")).to_have_text(made_up_rows()[1].command)
    assert page.evaluate("navigator.clipboard.readText()") == made_up_rows()[1].command
    picture = tmp_path / "page.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 20_000


def test_indexes_axes_and_the_width_of_the_window(page: Page) -> None:
    expect(points(page)).to_have_count(16)
    page.locator("#filter input[value='flat']").uncheck()
    expect(points(page)).to_have_count(13)
    page.locator("#frontier-only").check()
    expect(points(page)).to_have_count(2)
    page.locator("#filter input[value='flat']").check()
    expect(points(page)).to_have_count(4)

    across, up = page.locator("#plot .xtitle"), page.locator("#plot .ytitle")
    expect(across).to_contain_text("memory for a search, MiB")
    expect(up).to_contain_text("image AUROC")
    page.get_by_role("button", name="latency against recall").click()
    expect(across).to_contain_text("latency of an image, median")
    expect(up).to_contain_text("recall@1")
    assert page.evaluate("document.getElementById('plot').layout.xaxis.type") == "log"
    page.locator("#x-log").uncheck()
    assert page.evaluate("document.getElementById('plot').layout.xaxis.type") == "linear"
    page.locator("#y").select_option("images_per_s_64")
    expect(up).to_contain_text("images/s, batches of 64")

    assert no_wider_than_the_window(page)
    page.set_viewport_size({"width": 400, "height": 800})
    expect(page.locator("#plot .main-svg").first).to_have_attribute("width", re.compile(r"^3\d\d$"))
    assert no_wider_than_the_window(page)


def test_names_stay_text_and_cells_of_the_table_are_chosen(page: Page) -> None:
    hostile, failed = page.locator("#cells tbody tr").last, page.locator("#cells tbody tr").nth(15)
    expect(hostile).to_contain_text(HOSTILE)
    hostile.click()
    assert page.locator("#command").text_content() == f"cfa-index build -c '{HOSTILE}'"
    assert page.locator("h1").text_content() == f"Study of {HOSTILE}"
    assert page.locator("img").count() == 0
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')); }")
    failed.click()
    expect(page.locator("#status")).to_contain_text("select the command")
    expect(page.locator("#figures")).to_contain_text("at most 1000 memories")


def test_the_markup_has_no_other_element_than_ours(file: Path) -> None:
    """Whatever the browser forgives: the page as a parser sees it."""
    opened: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            opened.append(tag)
            assert not {name for name, _ in attrs} & {"src", "href", "onerror"}

    text = file.read_text()
    Parser().feed(text)
    assert opened.count("script") == 3
    assert "img" not in opened
    embedded = re.search(r'<script type="application/json" id="study">(.*?)</script>', text, re.DOTALL)
    assert embedded is not None
    assert len(json.loads(embedded[1])["rows"]) == 17


def test_without_labels_recall_stands_for_accuracy(tmp_path: Path) -> None:
    write_study_page(tmp_path / "page.html", made_up_rows(labelled=False), title="weave", facts=[])
    text = (tmp_path / "page.html").read_text()
    assert "memory against recall@1" in text
    assert "image_auroc" not in json.dumps(
        json.loads(text.split('id="study">')[1].split("</script>")[0])["axes"]
    )


@pytest.mark.parametrize(
    ("ratio", "text"), [(1.0, "1"), (0.25, "1/4"), (1 / 3, "1/3"), (0.123456, "0.123456")]
)
def test_ratios_read_back(ratio: float, text: str) -> None:
    assert ratio_text(ratio) == text


def test_without_plotly_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(OutputError, match="pip install"):
        write_study_page(tmp_path / "page.html", made_up_rows(), title="weave", facts=[])
    assert list(tmp_path.iterdir()) == []
