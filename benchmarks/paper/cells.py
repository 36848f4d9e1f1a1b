"""One computation, and the settings of each method of the paper."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.paper.made_up import SIDE_PX
from benchmarks.paper.published import CLASSES
from cfa_index import BACKBONES, ModelSpec, preset

Protocol = Literal["last", "published"]
"""`last`: the last epoch, CFA++ fused. `published`: the best epoch on the test set, a metric at a time,
and CFA++ the better of crop and resize-only for each class."""
Task = Literal["complexity", "evaluate", "figures"]
Change = Callable[[ModelSpec], ModelSpec]

TABLES = (1, 2, 3, 4, 5, 6, 7)
_QUICK_MEMORIES = 64
_QUICK_EPOCHS = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for.

    Attributes:
        tables: some of 1 to 7.
        categories: classes to run, names of MVTec AD.
        seeds: of the protocol `last`; `published` takes the first.
        protocols: which to run.
        ablations: also the table of our own ablations.
        quick: 64 px, 2 epochs, small banks: for the made-up data set.
    """

    tables: tuple[int, ...] = TABLES
    categories: tuple[str, ...] = CLASSES
    seeds: tuple[int, ...] = (0, 1, 2)
    protocols: tuple[Protocol, ...] = ("last",)
    ablations: bool = False
    quick: bool = False

    def seeds_of(self, protocol: Protocol) -> tuple[int, ...]:
        """Seeds that a protocol is run with."""
        return self.seeds if protocol == "last" else self.seeds[:1]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One computation: models of one class, trained and evaluated, to metrics.

    Attributes:
        task: `evaluate`, `figures` (draws Figures 3 and 4 of the one member), or `complexity` (Table 1).
        category: of the data root; empty for `complexity`.
        members: one model, or two whose maps are fused.
        protocol: which epoch counts.
        rotated: on the rotated copy that is drawn from the members' seed (Table 3).
        quick: on the made-up data set.
    """

    task: Task = "evaluate"
    category: str = ""
    members: tuple[ModelSpec, ...] = ()
    protocol: Protocol = "last"
    rotated: bool = False
    quick: bool = False

    @property
    def seed(self) -> int:
        """Of every random choice."""
        return self.members[0].seed if self.members else 0

    @property
    def backbone(self) -> str:
        """Of all members."""
        return self.members[0].features.backbone if self.members else ""

    @property
    def group(self) -> str:
        """Cells of a group share features and models, which are removed when all of them are done."""
        data = f"rotated-{self.seed}" if self.rotated else "upright"
        return f"{data}-{self.category}-{self.backbone}" if self.members else self.task

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: all that decides the result but for images, weights and machine."""
        return {
            "task": self.task,
            "category": self.category,
            "members": [member.to_dict() for member in self.members],
            "protocol": self.protocol,
            "rotated": self.rotated,
            "quick": self.quick,
        }

    def settings_text(self) -> str:
        """The settings in a line: each member as its preset and what differs from it."""
        members = []
        for member in self.members:
            changed = ", ".join(_changed(member))
            members.append(f"`{member.preset}`" + (f" with {changed}" if changed else ""))
        data = "rotated data, " if self.rotated else ""
        return f"{' fused with '.join(members)}; {data}protocol `{self.protocol}`"

    def __str__(self) -> str:
        if not self.members:
            return "Table 1, complexity"
        geometries = "+".join(member.features.geometry for member in self.members)
        words = [self.task, self.category, self.backbone, geometries, f"seed {self.seed}"]
        words += ["rotated"] if self.rotated else []
        words += [] if self.protocol == "last" else [f"protocol {self.protocol}"]
        preset_name = self.members[0].preset
        changed = [one for one in _changed(self.members[0]) if not one.startswith("features.")]
        return f"{' '.join(words)} ({', '.join([preset_name, *changed])})"


def _changed(member: ModelSpec) -> list[str]:
    """The settings of a model that are not its preset's."""
    base = dict(_flat(preset(member.preset).to_dict()))
    return [
        f"{name}={value}" for name, value in _flat(member.to_dict()) if value != base[name] and name != "seed"
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def digest(document: Any) -> str:
    """Sixteen hexadecimal digits that name a document of plain values."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unchanged(spec: ModelSpec) -> ModelSpec:
    """The change that changes nothing."""
    return spec


def paper(
    options: Options,
    backbone: str,
    *,
    seed: int,
    geometry: Literal["crop", "whole"],
    change: Change = unchanged,
) -> ModelSpec:
    """The preset `paper` for a backbone, with the factor on D' that the paper has for it."""
    base = preset("paper")
    spec = replace(
        base,
        features=replace(base.features, backbone=backbone, geometry=geometry),
        descriptor=replace(base.descriptor, expansion=BACKBONES[backbone].expansion),
        seed=seed,
    )
    return _fitted(options, change(spec))


def recommended(options: Options, backbone: str, *, seed: int) -> ModelSpec:
    """The preset `recommended`: this product's own settings, not the paper's."""
    base = preset("recommended")
    return _fitted(options, replace(base, features=replace(base.features, backbone=backbone), seed=seed))


def _fitted(options: Options, spec: ModelSpec) -> ModelSpec:
    if not options.quick:
        return spec
    size = None if spec.bank.size is None else min(spec.bank.size, _QUICK_MEMORIES)
    return replace(
        spec,
        features=replace(spec.features, size_px=SIDE_PX),
        bank=replace(spec.bank, size=size, iterations=4),
        train=replace(spec.train, epochs=min(spec.train.epochs, _QUICK_EPOCHS)),
    )
