"""What has to be computed: pure lists, so that nothing runs before it is known what will.

An `Entry` is one number of a table; the cells that it is the mean of are what `run` computes. A cell that
several entries name is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from benchmarks.paper import published as p
from benchmarks.paper.cells import (
    Cell,
    Change,
    Options,
    Protocol,
    digest,
    paper,
    recommended,
    unchanged,
)
from cfa_index import ModelSpec

Metric = Literal["image_auroc", "pixel_auroc", "aupro", "images_per_second"]
METRIC_NAMES: dict[Metric, str] = {
    "image_auroc": "I-AUROC",
    "pixel_auroc": "P-AUROC",
    "aupro": "AUPRO",
    "images_per_second": "images/s",
}
BACKBONE_NAMES = {
    "wide_resnet50_2": "WRN50-2",
    "resnet18": "ResNet18",
    "vgg19_bn": "VGG19-bn",
    "efficientnet_b5": "EfficientNet-B5",
}
_WRN = "wide_resnet50_2"
_AUROCS: tuple[Metric, ...] = ("image_auroc", "pixel_auroc")
_Classes = tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One number of a table: where it stands, what was published, and what ours is made of.

    Attributes:
        table: `2` to `7`, or `A` for our own ablations.
        row, column: where it stands.
        metric: what it is.
        published: percent (images a second in Table 6), or None.
        copied: the paper copied it from another system; it is printed and never run.
        of: how many classes the published number is the mean of.
        classes: one tuple of cells for every class and seed; of several cells the better counts
            (CFA++ as published). Empty where nothing of ours is meant.
    """

    table: str
    row: str
    column: str
    metric: Metric
    published: float | None = None
    copied: bool = False
    of: int = 1
    classes: _Classes = ()


def entries(options: Options) -> list[Entry]:
    """Every number of the asked tables in the order of printing. Table 1 is a report of its own."""
    makers = {2: _table_2, 3: _table_3, 4: _table_4, 5: _table_5, 6: _table_6, 7: _table_7}
    found = [entry for table in options.tables if table in makers for entry in makers[table](options)]
    return [*found, *(_ablations(options) if options.ablations else ())]


def cells(options: Options) -> list[Cell]:
    """Every cell of the asked tables once, in the order of running: those of a group in a row."""
    wanted = {cell for entry in entries(options) for one in entry.classes for cell in one}
    if {2, 4} & set(options.tables) and options.categories:
        member = paper(options, _WRN, seed=options.seeds[0], geometry="crop")
        category = options.categories[0]
        wanted.add(Cell(task="figures", category=category, members=(member,), quick=options.quick))
    if 1 in options.tables:
        wanted.add(Cell(task="complexity", quick=options.quick))
    # In a group the published protocol first: it keeps every epoch, so the others find models trained.
    return sorted(
        wanted,
        key=lambda cell: (
            cell.task != "complexity",
            cell.rotated,
            cell.group,
            cell.protocol == "last",
            cell.task == "figures",
            cell.seed,
            len(cell.members),
            digest(cell.to_dict()),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Method:
    """How the cells of a column or a row are made."""

    options: Options
    backbone: str
    change: Change = unchanged
    rotated: bool = False

    def cell(
        self, category: str, seed: int, protocol: Protocol, *geometries: Literal["crop", "whole"]
    ) -> Cell:
        members = tuple(
            paper(self.options, self.backbone, seed=seed, geometry=one, change=self.change)
            for one in geometries
        )
        quick = self.options.quick
        return Cell(category=category, members=members, protocol=protocol, rotated=self.rotated, quick=quick)

    def single(
        self, names: Iterable[str], protocol: Protocol, geometry: Literal["crop", "whole"]
    ) -> _Classes:
        """CFA of one geometry."""
        return tuple(
            (self.cell(name, seed, protocol, geometry),)
            for seed in self.options.seeds_of(protocol)
            for name in _asked(self.options, names)
        )

    def plus_plus(self, names: Iterable[str], protocol: Protocol) -> _Classes:
        """CFA++: the fused pair, or as published the better of the two."""
        return tuple(
            (self.cell(name, seed, protocol, "crop", "whole"),)
            if protocol == "last"
            else (self.cell(name, seed, protocol, "crop"), self.cell(name, seed, protocol, "whole"))
            for seed in self.options.seeds_of(protocol)
            for name in _asked(self.options, names)
        )


def titled(name: str, protocol: Protocol) -> str:
    """The name of a row or column, which always says when the protocol is the published one."""
    return name if protocol == "last" else f"{name} [published protocol]"


def _asked(options: Options, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in options.categories)


def _copied(table: str, row: str, metric: Metric, numbers: Iterable[tuple[str, float]]) -> Iterator[Entry]:
    for system, value in numbers:
        if system in p.COPIED:
            yield Entry(table=table, row=row, column=system, metric=metric, published=value, copied=True)


def _wide(
    options: Options,
    table: str,
    row: str,
    metric: Metric,
    names: Sequence[str],
    numbers: dict[str, float],
) -> Iterator[Entry]:
    """Our columns of Tables 2 and 4: CFA, CFA resize only, CFA++, and the recommended preset."""
    method = _Method(options=options, backbone=_WRN)
    for protocol in options.protocols:
        made = {
            "CFA": method.single(names, protocol, "crop"),
            "CFA, resize only": method.single(names, protocol, "whole"),
            "CFA++": method.plus_plus(names, protocol),
        }
        for column, classes in made.items():
            yield Entry(
                table=table,
                row=row,
                column=titled(column, protocol),
                metric=metric,
                published=numbers.get(column),
                of=len(names),
                classes=classes,
            )
    if "last" in options.protocols:
        ours = tuple(
            (Cell(category=name, members=(recommended(options, _WRN, seed=seed),), quick=options.quick),)
            for seed in options.seeds
            for name in _asked(options, names)
        )
        column = "recommended preset, not the paper's"
        yield Entry(table=table, row=row, column=column, metric=metric, of=len(names), classes=ours)


def _table_2(options: Options) -> Iterator[Entry]:
    for (name, group), numbers in p.TABLE_2.items():
        metric: Metric = "image_auroc" if name == "image_auroc" else "pixel_auroc"
        row = f"{METRIC_NAMES[metric]}, {group}"
        yield from _copied("2", row, metric, numbers.items())
        resize_only = {"CFA, resize only": p.README_RESIZE_ONLY[name, group]} if group == "all" else {}
        yield from _wide(options, "2", row, metric, p.GROUPS[group], {**numbers, **resize_only})


def _table_3(options: Options) -> Iterator[Entry]:
    for (name, group), numbers in p.TABLE_3.items():
        metric: Metric = "image_auroc" if name == "image_auroc" else "aupro"
        row = f"{METRIC_NAMES[metric]}, {group}"
        yield from _copied("3", row, metric, numbers.items())
        for backbone in ("resnet18", _WRN):
            system = f"CFA++ ({BACKBONE_NAMES[backbone]})"
            method = _Method(options=options, backbone=backbone, rotated=True)
            for protocol in options.protocols:
                yield Entry(
                    table="3",
                    row=row,
                    column=titled(system, protocol),
                    metric=metric,
                    published=numbers[system],
                    of=len(p.GROUPS[group]),
                    # The random crop is part of the data, so there is one frame to look at.
                    classes=method.single(p.GROUPS[group], protocol, "whole"),
                )


def _table_4(options: Options) -> Iterator[Entry]:
    for name, numbers in p.TABLE_4.items():
        yield from _copied("4", name, "image_auroc", numbers.items())
        resize_only = p.README_RESIZE_ONLY_CLASSES.get(name)
        known = dict(numbers) if resize_only is None else {**numbers, "CFA, resize only": resize_only}
        yield from _wide(options, "4", name, "image_auroc", (name,), known)
    yield from _copied("4", "average", "image_auroc", p.TABLE_4_AVERAGE.items())
    average = {**p.TABLE_4_AVERAGE, "CFA, resize only": p.README_RESIZE_ONLY["image_auroc", "all"]}
    yield from _wide(options, "4", "average", "image_auroc", p.CLASSES, average)


def _pairs(
    options: Options, table: str, row: str, method: _Method, numbers: Sequence[float], prefix: str = ""
) -> Iterator[Entry]:
    """Image and pixel AUROC of CFA++ over all classes, in two columns."""
    for metric, value in zip(_AUROCS, numbers, strict=True):
        for protocol in options.protocols:
            yield Entry(
                table=table,
                row=row,
                column=titled(prefix + METRIC_NAMES[metric], protocol),
                metric=metric,
                published=value,
                of=len(p.CLASSES),
                classes=method.plus_plus(p.CLASSES, protocol),
            )


def _table_5(options: Options) -> Iterator[Entry]:
    changes: dict[str, Change] = {
        "neither": _untrained,
        "L_att only": lambda spec: replace(spec, train=replace(spec.train, repel=0)),
        "L_att + L_rep": unchanged,
    }
    for backbone, rows in p.TABLE_5.items():
        for row, numbers in rows.items():
            method = _Method(options=options, backbone=backbone, change=changes[row])
            yield from _pairs(options, "5", row, method, numbers, f"{BACKBONE_NAMES[backbone]} ")


def _untrained(spec: ModelSpec) -> ModelSpec:
    return replace(spec, train=replace(spec.train, epochs=0))


def _gamma(ratio: str) -> Change:
    value = float(Fraction(ratio))
    return lambda spec: replace(
        spec,
        descriptor=replace(spec.descriptor, gamma_d=value),
        bank=replace(spec.bank, gamma_c=value),
    )


def _table_6(options: Options) -> Iterator[Entry]:
    for ratio, (accuracy, speed) in p.TABLE_6.items():
        row = f"gamma = {ratio}"
        method = _Method(options=options, backbone=_WRN, change=_gamma(ratio))
        for protocol in options.protocols:
            yield Entry(
                table="6",
                row=row,
                column=titled("P-AUROC", protocol),
                metric="pixel_auroc",
                published=accuracy,
                of=len(p.CLASSES),
                classes=method.plus_plus(p.CLASSES, protocol),
            )
        yield Entry(table="6", row=row, column="images/s", metric="images_per_second", published=float(speed))


def _table_7(options: Options) -> Iterator[Entry]:
    for backbone, systems in p.TABLE_7.items():
        for system, numbers in systems.items():
            row = f"{BACKBONE_NAMES[backbone]}, {system}"
            if system in p.COPIED:
                for metric, value in zip(_AUROCS, numbers, strict=True):
                    column = METRIC_NAMES[metric]
                    yield Entry(
                        table="7", row=row, column=column, metric=metric, published=value, copied=True
                    )
            else:
                yield from _pairs(options, "7", row, _Method(options=options, backbone=backbone), numbers)


def _ablations(options: Options) -> Iterator[Entry]:
    """What the paper does not have: one change at a time, CFA of the crop, ResNet18."""
    changes: dict[str, Change] = {
        "as the paper": unchanged,
        "score of Eq. 4": lambda spec: replace(spec, score=replace(spec.score, patch_score="nearest")),
        "radius fixed at the median distance": lambda spec: replace(
            spec, train=replace(spec.train, radius="median", learn_radius=False)
        ),
        "radius learned from the median distance": lambda spec: replace(
            spec, train=replace(spec.train, radius="median")
        ),
        **{f"phi_0 of init {name}": _initialised(init=name) for name in ("torch", "identity")},
        "phi_0 of init identity, standardised": _initialised(init="identity", standardise=True),
        "phi_0 of init whiten": _initialised(init="whiten", standardise=True),
        **{f"bank {name}": _banked(method=name) for name in ("mean", "kmeans", "hybrid", "random")},
        "bank coreset, 1% of all patches": _banked(method="coreset", share=0.01),
        "bank full, untrained": lambda spec: _untrained(_banked(method="full")(spec)),
    }
    for row, change in changes.items():
        method = _Method(options=options, backbone="resnet18", change=change)
        for metric in (*_AUROCS, "aupro"):
            yield Entry(
                table="A",
                row=row,
                column=METRIC_NAMES[metric],
                metric=metric,
                of=len(p.CLASSES),
                classes=method.single(p.CLASSES, "last", "crop"),
            )


def _initialised(**values: Any) -> Change:
    return lambda spec: replace(spec, descriptor=replace(spec.descriptor, **values))


def _banked(**values: Any) -> Change:
    return lambda spec: replace(spec, bank=replace(spec.bank, **values))
