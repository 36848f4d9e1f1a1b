"""What every test shares."""

from __future__ import annotations

import made_up
import pytest
import torch
from hypothesis import settings

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> made_up.Workplace:
    """A category whose generation 0002 was trained in one go."""
    place = made_up.built_workplace(tmp_path_factory.mktemp("trained"))
    outcome = made_up.cfa("train", "-c", "weave", *place.stores, "--epochs", "4")
    assert outcome.code == 0, outcome
    return place
