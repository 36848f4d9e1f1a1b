"""The fake card refuses what a true one would refuse, or would make the host wait for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fake_card import Crossing, fake_card, held
from torch import Tensor

from cfa_index.transfers import Uploads

CARD, OTHER = torch.device("meta", 0), torch.device("meta", 1)

WAITS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: float(x.sum()),
    "a truth value": lambda x: bool((x > 0).any()),
    "a comparison": lambda x: torch.allclose(x, x),
    "a copy to the host": lambda x: x.cpu(),
    "a copy into the host's memory": lambda x: torch.empty(4, 4).copy_(x),
    "a copy to the card": lambda x: x + torch.ones(4, 4).to(CARD),
    "a copy into the card's memory": lambda x: x.copy_(torch.ones(4, 4)),
    "a row of the host": lambda x: x.__setitem__(0, torch.ones(4)),
    "a Python number as a tensor": lambda x: x + torch.tensor(3.0, device=CARD),
    "Python numbers as a tensor": lambda x: x + x.new_tensor([1.0, 2.0, 3.0, 4.0]),
    "a mask": lambda x: x[x > 0],
    "a mask to write by": lambda x: x.index_put_((x > 0,), x[0, 0]),
    "rows by a list": lambda x: x[[0, 1]],
    "rows by an array": lambda x: x[np.array([0, 1])],
    "places": lambda x: x.nonzero(),
    "places of a condition": lambda x: torch.where(x > 0),
    "values without repetition": torch.unique,
    "values without repetition in a row": torch.unique_consecutive,
    "repeats by a tensor": lambda x: torch.repeat_interleave(x, x[0].long().abs(), dim=0),
    "counts": lambda x: torch.bincount(x.long().abs().flatten()),
    "a histogram": torch.histc,
    "an inverse": lambda x: torch.linalg.inv(x + 9 * torch.eye(4, device=CARD)),
    "singular values": torch.linalg.svd,
}
FAILS: dict[str, Callable[[Tensor], object]] = {
    "host and card": lambda x: x + torch.ones(4, 4),
    "two cards": lambda x: x + torch.ones(4, 4, device=OTHER),
    "an index of the host": lambda x: x.index_select(0, torch.tensor([0])),
    "a generator of the host": lambda _: torch.randn(3, generator=torch.Generator(), device=CARD),
}


def _on_card() -> Tensor:
    return torch.arange(16.0).view(4, 4).sub(5).div(7).to(CARD)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("what", WAITS)
def test_what_waits_is_refused(what: str, inference: bool) -> None:
    with fake_card() as card, torch.inference_mode(inference):
        x = _on_card()
        with card.refusing(), pytest.raises(Crossing):
            WAITS[what](x)


@pytest.mark.parametrize("what", FAILS)
def test_what_would_fail_is_refused_at_any_time(what: str) -> None:
    with fake_card(), pytest.raises(Crossing):
        FAILS[what](_on_card())


def test_uploads_and_operations_of_the_card_are_not_refused() -> None:
    with fake_card() as card:
        x = _on_card()
        with card.refusing():
            (sent,) = Uploads(CARD)([torch.ones(4, 4)])
            made = (x + sent).sort(dim=1, stable=True).values[:, :2] * 2
        assert torch.equal(held(made), (torch.arange(16.0).view(4, 4).sub(5).div(7) + 1)[:, :2] * 2)
        assert card.to_card == [(4, 4)] * 2
        assert not card.to_host
        assert not card.waits
