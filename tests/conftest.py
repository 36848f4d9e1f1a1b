"""What every test shares."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import made_up
import pytest
import torch
from fake_card import fake_card
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)

# The same examples every time: what passes here passes on the next machine.
settings.register_profile("shared-machine", deadline=None, derandomize=True)
settings.load_profile("shared-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run wherever a card is found and is asked for; elsewhere they say why not."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=["cpu", "fake card", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where a test's body runs: the CPU, a card that is not there, and a true one wherever there is one.

    A body moves what it gives to `device` and what it reads to the CPU; on the fake card everything between is
    refused that would fail on a card, see tests/fake_card.py.
    """
    if request.param == "fake card":
        with fake_card():
            yield torch.device("meta", 0)
    else:
        yield torch.device("cpu") if request.param == "cpu" else torch.device("cuda", 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> made_up.Workplace:
    """A category whose generation 0002 was trained in one go."""
    place = made_up.built_workplace(tmp_path_factory.mktemp("trained"))
    outcome = made_up.cfa("train", "-c", "weave", *place.stores, "--epochs", "4")
    assert outcome.code == 0, outcome
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's chromium, without a window; its event loop lives as long as a module's tests."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CFA_INDEX_REQUIRE_BROWSER") == "1":
        pytest.fail("no chromium on this machine: apt-get install -y --no-install-recommends chromium")
    if found is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def scorable(tmp_path_factory: pytest.TempPathFactory) -> made_up.Workplace:
    """A built category that the tests of batch scoring share and none changes."""
    return made_up.built_workplace(tmp_path_factory.mktemp("scorable"), test=1)
