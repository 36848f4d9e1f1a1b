"""What a run may take of a card, from the command line to the bank; and cards that are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import QUICK, Workplace, built_workplace, cfa, tree, write_good

from cfa_index import CardSpec, MemoryBank, ModelBundle, RayCluster, score_folder_on_ray
from cfa_index.errors import BankError, SpecError
from cfa_index.workflows import score_ray

MIB = 1 << 20
GIVEN = CardSpec(temporary_bytes=64 * MIB, storage="fp16")
OPTIONS = ("--card-memory", "64MiB", "--card-storage", "fp16", "--device", "cpu")
COMMANDS = [
    "build", "train", "query", "evaluate", "score", "study", "bank add", "bank remove", "bank reindex"
]  # fmt: skip
MISSING = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A built category; no command of this file comes so far as to change it."""
    return built_workplace(tmp_path_factory.mktemp("place"))


def arguments(command: str, place: Workplace, output: Path) -> list[object]:
    """A command that would run."""
    good = place.data / "weave" / "train" / "good" / "000.png"
    more: dict[str, list[object]] = {
        "build": [*place.everything, *QUICK],
        "train": [*place.stores, "--epochs", "1"],
        "query": [good, *place.model, "-o", output],
        "evaluate": ["--data-root", place.data, *place.model],
        "score": [place.data / "weave" / "test", *place.model, "-o", output],
        "study": ["--data-root", place.data, "--features-dir", place.features, "-o", output, *QUICK],
        "bank add": [write_good(output / "new", 2, first=500), *place.stores],
        "bank remove": ["--image", "000.png", "--rebuild", *place.stores],
        "bank reindex": ["--index", "flat16", *place.stores],
    }
    return [*command.split(), "-c", "weave", *more[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_card_that_is_not_there_is_one_line(command: str, place: Workplace, tmp_path: Path) -> None:
    before = tree(place.root)
    line = cfa(*arguments(command, place, tmp_path), "--device", MISSING).error_line
    assert line.startswith(f"cfa-index: expected a CUDA device {MISSING[5:] or 0}, got ")
    assert line.endswith("use --device cpu or auto")
    assert tree(place.root) == before


@pytest.mark.parametrize("command", ["build", "study"])
@pytest.mark.parametrize("wrong", [("--device", MISSING), ("--card-memory", "1GB and more")])
def test_what_is_wrong_with_a_card_is_said_before_weights_are_looked_for(
    command: str, wrong: tuple[str, str], place: Workplace, tmp_path: Path
) -> None:
    outcome = cfa(*arguments(command, place, tmp_path), *wrong, "--weights", tmp_path / "missing.safetensors")
    assert outcome.code == (2 if wrong[0] == "--card-memory" else 1)
    assert "missing.safetensors" not in outcome.err


def test_the_demo_lays_nothing_out_for_a_card_that_is_not_there(tmp_path: Path) -> None:
    assert "a CUDA device" in cfa("demo", "-o", tmp_path / "demo", "--device", MISSING).error_line
    assert not (tmp_path / "demo").exists()


def shown(*_: object, card: CardSpec = CardSpec(), **__: object) -> MemoryBank:
    """In place of a bank: what it may take of a card, as an error."""
    got = f"{card.temporary_bytes} {card.storage} {card.spread}"
    raise BankError(expected="a look", got=got, remedy="none")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_come_as_far_as_the_bank(
    command: str, place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfa_index.workflows.start.MemoryBank", shown)
    monkeypatch.setattr("cfa_index.bundle.model.bank_on", shown)
    line = cfa(*arguments(command, place, tmp_path), *OPTIONS).error_line
    assert f"got {64 * MIB} fp16" in line


@pytest.mark.parametrize("command", ["train", "query", "evaluate", "score"])
def test_commands_that_take_several_cards_say_how_the_bank_is_spread(
    command: str, place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfa_index.bundle.model.bank_on", shown)
    line = cfa(*arguments(command, place, tmp_path), *OPTIONS, "--card-spread", "shards").error_line
    assert f"got {64 * MIB} fp16 shards" in line


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"train", "query", "evaluate", "score"}))
def test_commands_that_take_one_card_refuse_several(command: str, place: Workplace, tmp_path: Path) -> None:
    line = cfa(*arguments(command, place, tmp_path), "--device", "cuda:0,1").error_line
    assert "expected one device, got 'cuda:0,1'" in line


def test_an_actor_of_ray_takes_what_its_run_takes(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ModelBundle.load(place.models / "weave", card=GIVEN)
    assert bundle.bank.card == GIVEN

    def loads(*_: object, make_worker: Callable[[], Any], **__: object) -> None:
        monkeypatch.setattr("cfa_index.bundle.model.bank_on", shown)
        make_worker()

    monkeypatch.setattr(score_ray, "run_on_ray", loads)
    monkeypatch.setattr(score_ray, "set_threads", lambda _: None)
    with pytest.raises(BankError, match=f"{64 * MIB} fp16"):
        score_folder_on_ray(
            bundle,
            place.data / "weave" / "test",
            tmp_path / "out",
            cluster=RayCluster(),
            card=GIVEN,
        )


def test_on_the_cpu_they_mean_nothing(place: Workplace, tmp_path: Path) -> None:
    command = arguments("query", place, tmp_path)
    plain, given = (cfa(*command, "--json", "-", *more).document for more in ((), OPTIONS))
    assert plain == given


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--card-memory", "0"), 1, "the temporary memory of a card to be from 16777216 to 1610612736 bytes"),
        (("--card-memory", "99TB"), 1, "got 99000000000000"),
        (("--card-memory", "1MiB"), 1, "leave it out for 256 MiB"),
        (("--card-memory", "-1"), 2, "'-1' is not a size such as 64MiB"),
        (("--card-memory", "99T"), 2, "'99T' is not a size such as 64MiB"),
        (("--card-memory", ""), 2, "is not a size"),
        (("--card-storage", "fp8"), 2, "'fp8'"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_taken_is_refused(
    command: str, options: tuple[str, str], code: int, says: str, place: Workplace, tmp_path: Path
) -> None:
    before = tree(place.root)
    outcome = cfa(*arguments(command, place, tmp_path), *options)
    assert outcome.code == code, outcome
    assert says in " ".join(outcome.err.replace("│", " ").split())
    assert tree(place.root) == before


@pytest.mark.parametrize(
    "wrong", [{"temporary_bytes": 0}, {"temporary_bytes": (3 << 29) + 1}, {"storage": "fp8"}, {"spread": ""}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        CardSpec(**wrong)
    assert CardSpec.from_dict(GIVEN.to_dict()) == GIVEN
