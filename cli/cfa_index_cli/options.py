"""Options that several commands share, and how their words become values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfa_index.specs import ModelSpec
from cfa_index_cli.config import load_config

if TYPE_CHECKING:
    from cfa_index import WeightsOrigin


class Preset(StrEnum):
    """Named settings; see `cfa_index.preset`."""

    RECOMMENDED = "recommended"
    PAPER = "paper"
    PUBLISHED_CODE = "published-code"


class GeometryName(StrEnum):
    """How an image becomes the network's square."""

    WHOLE = "whole"
    CROP = "crop"
    LETTERBOX = "letterbox"


class InitName(StrEnum):
    """Where phi starts."""

    HE = "he"
    TORCH = "torch"
    IDENTITY = "identity"
    WHITEN = "whiten"


class MethodName(StrEnum):
    """How patches become memories."""

    HYBRID = "hybrid"
    EMA = "ema"
    MEAN = "mean"
    KMEANS = "kmeans"
    CORESET = "coreset"
    RANDOM = "random"
    FULL = "full"


class PatchScoreName(StrEnum):
    """From the distances of a patch's nearest memories to its score."""

    NEAREST = "nearest"
    CERTAINTY = "certainty"


class BaselineName(StrEnum):
    """What is taken from each patch's score."""

    NONE = "none"
    POSITION = "position"


class SelectName(StrEnum):
    """What decides on start and epoch of a training."""

    NONE = "none"
    SYNTHETIC = "synthetic"


class DecodeName(StrEnum):
    """Where JPEGs become pixels."""

    HOST = "host"
    CARD = "card"


class PrecisionName(StrEnum):
    """What products are computed in."""

    FP32 = "fp32"
    BF16 = "bf16"


class LogLevelName(StrEnum):
    """How much a command tells."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


_FRACTION = re.compile(r"([+-]?\d{1,6})/(\d{1,6})", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d{1,9}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?", re.ASCII)
"""Bounded: the exact value of 1e999999999 would take all memory."""


def parse_ratio(text: str) -> float:
    """`1/4` or `0.25` as a number."""
    fraction = _FRACTION.fullmatch(text)
    if fraction and int(fraction[2]):
        return int(fraction[1]) / int(fraction[2])
    if _DECIMAL.fullmatch(text):
        return float(text)
    raise typer.BadParameter(f"{text!r} is not a ratio such as 1/4 or 0.25")


_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]i?B|B)?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|s)", re.ASCII)


def parse_bytes(text: str) -> int:
    """`64MiB`, `1.5GB` or `4096` in bytes: MiB are powers of 1,024, MB of 1,000."""
    if not (match := _SIZE.fullmatch(text)):
        raise typer.BadParameter(f"{text!r} is not a size such as 64MiB")
    unit = (match[2] or "").lower()
    base = 1024 if "i" in unit else 1000
    return int(float(match[1]) * base ** _POWERS[unit[:1]])


def parse_ms(text: str) -> float:
    """`20ms` or `0.5s` in milliseconds."""
    if not (match := _DURATION.fullmatch(text)):
        raise typer.BadParameter(f"{text!r} is not a time such as 20ms or 0.5s")
    return float(match[1]) * (1000 if match[2] == "s" else 1)


def parse_strides(text: str) -> tuple[int, ...]:
    """`8,16` as numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of strides such as 8,16") from error


def parse_radius(text: str) -> float | str:
    """`median`, or a number."""
    if text == "median":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a number nor 'median'") from error


def with_default(text: str, recommended: object, *, owner: str = "the preset") -> str:
    """The help of an option whose default is its owner's, with the value of the recommended preset."""
    return f"{text} [default: {owner}'s; recommended: {recommended}]"


DATA, FEATURES, BANK, SCORE, RUN = "Data", "Features", "Bank", "Score", "Run"
"""Groups of options in the help."""
RECOMMENDED = ModelSpec()
"""Its values are shown in the help."""

DataRoot = Annotated[
    Path,
    typer.Option(
        "--data-root",
        envvar="CFA_INDEX_DATA_ROOT",
        help="Folder of categories in MVTec's layout: CATEGORY/train/good, CATEGORY/test/DEFECT.",
        rich_help_panel=DATA,
    ),
]
ModelsDir = Annotated[
    Path,
    typer.Option(
        "--models-dir", envvar="CFA_INDEX_MODELS_DIR", help="Where models are kept.", rich_help_panel=DATA
    ),
]
FeaturesDir = Annotated[
    Path,
    typer.Option(
        "--features-dir",
        envvar="CFA_INDEX_FEATURES_DIR",
        help="Where patch features are kept.",
        rich_help_panel=DATA,
    ),
]
CategoryName = Annotated[str, typer.Option("--category", "-c", help="Name of the product, or 'all'.")]
OneCategory = Annotated[str, typer.Option("--category", "-c", help="Name of the product.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="CFA_INDEX_DEVICE",
        help="auto, cpu, cuda or cuda:N; several cards, cuda:0,1, where there is --card-spread.",
        rich_help_panel=RUN,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        envvar="CFA_INDEX_THREADS",
        min=1,
        help="Threads for the maths (default: all cores) and for decoding (default: 2).",
        rich_help_panel=RUN,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="File with the backbone's weights (.pth, .safetensors); 'random' for tests and speed only.",
        rich_help_panel=FEATURES,
    ),
]
BundleWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="File with the backbone's weights, for a model that was built without them; another file "
        "than that of the build is refused.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images a forward pass.")]
ThresholdValue = Annotated[
    float | None,
    typer.Option("--threshold", help="Scores above it are anomalous; in place of the model's own."),
]
INDEX = "Index"
IndexName = Annotated[
    str | None,
    typer.Option(
        "--index",
        help="How memories are searched. flat: exactly (the default). flat16: half floats. pca-refine: leading "
        "directions, then a shortlist exactly. ivf, ivf-sq8, ivf-pq: the nearest cells of a partition, the "
        "latter two compressed. hnsw: a graph. cagra: a graph that a card can build and walk, too (extra cuvs). "
        "auto: the fastest within the budgets. Or a FAISS factory string. "
        "All but flat are tuned on held-out patches; distances stay exact.",
        rich_help_panel=INDEX,
    ),
]
MinRecall = Annotated[
    str | None,
    typer.Option(
        "--min-recall",
        help="Share of good patches whose nearest memory the index has to find. "
        f"[default: {RECOMMENDED.index.min_recall}]",
        rich_help_panel=INDEX,
    ),
]
BudgetMemory = Annotated[
    str | None,
    typer.Option(
        "--budget-memory",
        help="With --index auto: most memory that a search may keep resident, such as 64MiB.",
        rich_help_panel=INDEX,
    ),
]
BudgetLatency = Annotated[
    str | None,
    typer.Option(
        "--budget-latency",
        help="With --index auto: longest search for the patches of one image, such as 20ms.",
        rich_help_panel=INDEX,
    ),
]
RebuildIndex = Annotated[
    bool,
    typer.Option(
        "--rebuild-index",
        help="Make the index from the vectors and leave its file unread: for a model whose origin is not trusted.",
        rich_help_panel=RUN,
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Write the result as one JSON document; '-' is standard output.", rich_help_panel=RUN
    ),
]
LogLevel = Annotated[
    LogLevelName | None,
    typer.Option(
        "--log-level",
        envvar="CFA_INDEX_LOG_LEVEL",
        help="How much is told: error, warning (what was left out), info (progress; the default) or debug.",
        rich_help_panel=RUN,
    ),
]
Events = Annotated[
    Path | None,
    typer.Option("--events", help="Append a line of JSON an event, for a supervisor.", rich_help_panel=RUN),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=load_config,
        is_eager=True,
        help="TOML file of option values; flags and the environment win over it.",
        rich_help_panel=RUN,
    ),
]

DATA_ROOT = Path("data")
MODELS_DIR = Path("models")
FEATURES_DIR = Path("features")


def override(
    base: ModelSpec,
    *,
    features: Mapping[str, Any],
    descriptor: Mapping[str, Any],
    bank: Mapping[str, Any],
    score: Mapping[str, Any],
    index: Mapping[str, Any],
    top: Mapping[str, Any],
) -> ModelSpec:
    """A spec with the given values in place; None leaves a setting as it is, but a ratio of the bank's
    replaces its size.

    Raises:
        SpecError: a value is out of its range, or two contradict each other.
    """
    new_bank = replace(base.bank, **_given(bank))
    if bank["size"] is None and (bank["gamma_c"] is not None or bank["share"] is not None):
        new_bank = replace(new_bank, size=None)
    return replace(
        base,
        features=replace(base.features, **_given(features)),
        descriptor=replace(base.descriptor, **_given(descriptor)),
        bank=new_bank,
        score=replace(base.score, **_given(score)),
        index=replace(base.index, **index),
        **_given(top),
    )


def index_settings(
    name: str | None, min_recall: str | None, budget_memory: str | None, budget_latency: str | None
) -> dict[str, Any]:
    """The given settings of an `IndexSpec`; a budget alone asks for `auto`."""
    if name is None and (budget_memory is not None or budget_latency is not None):
        name = "auto"
    return _given(
        {
            "factory": name,
            "min_recall": None if min_recall is None else parse_ratio(min_recall),
            "budget_memory_bytes": None if budget_memory is None else parse_bytes(budget_memory),
            "budget_latency_ms": None if budget_latency is None else parse_ms(budget_latency),
        }
    )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def warn_random(weights: WeightsOrigin, say: Callable[[str], None]) -> None:
    """Say so when a model's backbone has random weights."""
    if weights.is_random:
        say(f"warning: {weights.source} weights: for tests and speed only, scores mean nothing")


def one_or_many(documents: Sequence[Mapping[str, Any]], asked: int) -> Mapping[str, Any]:
    """A command's document: that of the one category asked for, or those that did not fail, under `categories`."""
    return documents[0] if asked == 1 else {"schema_version": 1, "categories": list(documents)}
