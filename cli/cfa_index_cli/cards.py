"""Options that say what a run may take of a card."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cfa_index.specs import CardSpec
from cfa_index_cli import options as o

_DEFAULTS = CardSpec()


class StorageName(StrEnum):
    """What a card searches through."""

    FP32 = "fp32"
    FP16 = "fp16"


class SpreadName(StrEnum):
    """What several cards hold."""

    REPLICAS = "replicas"
    SHARDS = "shards"


CardMemory = Annotated[
    str | None,
    typer.Option(
        "--card-memory",
        envvar="CFA_INDEX_CARD_MEMORY",
        help="With a card: scratch memory of its searches, such as 1GiB; FAISS takes at most 1.5 GiB. More of it "
        "and a large bank is searched in fewer, larger steps; less leaves room for larger batches and banks. "
        f"[default: {_DEFAULTS.temporary_bytes >> 20}MiB]",
        show_default=False,
        rich_help_panel=o.RUN,
    ),
]
CardStorage = Annotated[
    StorageName | None,
    typer.Option(
        "--card-storage",
        envvar="CFA_INDEX_CARD_STORAGE",
        help="With a card: what it searches through. fp32: the memories. fp16: half floats beside them, half as "
        "much again; what they find is ranked by the memories, so distances stay exact. "
        f"[default: {_DEFAULTS.storage}]",
        show_default=False,
        rich_help_panel=o.RUN,
    ),
]
CardSpread = Annotated[
    SpreadName | None,
    typer.Option(
        "--card-spread",
        envvar="CFA_INDEX_CARD_SPREAD",
        help="With several cards, --device cuda:0,1: how the bank is spread over them. replicas: each holds it "
        "and searches for a part of the patches. shards: each holds a part of it, so that it may be larger than "
        "a card, and they search without an index; not for training. All else is done on the first. "
        f"[default: {_DEFAULTS.spread}]",
        show_default=False,
        rich_help_panel=o.RUN,
    ),
]


def card_settings(
    memory: str | None, storage: StorageName | None, spread: SpreadName | None = None
) -> CardSpec:
    """The settings behind the options `--card-...`; on the CPU they mean nothing.

    Raises:
        SpecError: no memory, or more than FAISS takes.
    """
    return CardSpec(
        temporary_bytes=_DEFAULTS.temporary_bytes if memory is None else o.parse_bytes(memory),
        storage=_DEFAULTS.storage if storage is None else storage.value,
        spread=_DEFAULTS.spread if spread is None else spread.value,
    )
