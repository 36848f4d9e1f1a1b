"""From cells to results: one JSON file a cell, written whole; those that exist are not run again.

A run that was killed goes on where it was: with the next cell, and inside a cell with the next shard of
features or the next epoch. A cell that fails is recorded with its one-line error, the others go on, and it
is tried again when the run is started again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.complexity import measure_table1
from benchmarks.paper.cells import Cell, Task, digest
from benchmarks.paper.plan import METRIC_NAMES
from cfa_index import (
    BACKBONES,
    Category,
    Evaluation,
    Event,
    GoodImages,
    Listener,
    Manifest,
    ModelBundle,
    ModelSpec,
    Notice,
    PublishedEvaluation,
    RotationSpec,
    StageAdvanced,
    StageStarted,
    build,
    current_generation,
    draw_figures,
    evaluate,
    evaluate_published,
    load_backbone,
    open_category,
    read_manifest,
    resolve_device,
    rotate_category,
    train,
    write_json,
)
from cfa_index.errors import BundleError, CfaIndexError, WeightsError
from cfa_index.specs import CROP_RATIO

_SPEAK_EVERY_S = 60.0
_EPOCHS_FILE = "epochs.safetensors"
_IMAGES, _QUICK_IMAGES = (8, 16, 32, 64), (4, 8)
"""Numbers of images that Table 1 is measured at."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where and on what cells are run.

    Attributes:
        data_root: in MVTec AD's layout.
        output: cells, tables and figures go here, and the work that is not done yet.
        weights_dir: a folder with torchvision's files, or None for its cache or the net.
        device: see `resolve_device`.
        threads: that decode.
    """

    data_root: Path
    output: Path
    weights_dir: Path | None
    device: str = "auto"
    threads: int = 2

    def work(self, cell: Cell) -> Path:
        """Features and models of a cell's group; removed when the group is done."""
        return self.output / "work" / cell.group

    def weights_of(self, backbone: str) -> Path | None:
        """What `load_backbone` takes.

        Raises:
            WeightsError: the folder does not hold the file.
        """
        if self.weights_dir is None:
            return None
        published = self.weights_dir / BACKBONES[backbone].checkpoint
        for file in (published, published.with_suffix(".safetensors")):
            if file.is_file():
                return file
        raise WeightsError(
            expected=f"the weights of {backbone} at {published}, or as .safetensors",
            got="no such file",
            remedy="put the file there, or leave --weights-dir out to have it downloaded",
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a cell came to.

    Attributes:
        metrics: fractions by name; None where one cannot be computed.
        details: what is worth knowing besides: sizes, the epochs that counted, rows of Table 1, files.
        seconds: it took.
        error: one line, where it failed.
    """

    metrics: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


def run(
    cells: Sequence[Cell],
    site: Site,
    *,
    say: Callable[[str], None],
    after_group: Callable[[Mapping[Cell, Result]], None],
) -> dict[Cell, Result]:
    """Run the cells that have no result yet.

    Args:
        cells: those of a group in a row.
        site: where and on what.
        say: told a line a cell, and what is worth knowing on the way.
        after_group: called with all results so far whenever a group is done.

    Returns:
        A result for every cell, those that failed too.

    Raises:
        OutputError: a result cannot be written.
    """
    results = {cell: found for cell in cells if (found := read_result(site, cell)) and not found.error}
    if results:
        say(f"{len(results)} of {len(cells)} cells are there already")
    for _, same in groupby(cells, key=lambda cell: cell.group):
        group = list(same)
        for cell in group:
            if cell in results:
                continue
            results[cell] = found = _attempt(cell, site, _Speaker(say))
            _write_result(site, cell, found)
            figures = ", ".join(
                f"{said} {100 * value:.2f}"
                for name, said in METRIC_NAMES.items()
                if (value := found.metrics.get(name)) is not None
            )
            say(
                f"[{len(results)}/{len(cells)}] {cell}: {found.error or figures or 'done'}"
                f" ({found.seconds:.0f} s; {_left(cells, results)})"
            )
        shutil.rmtree(site.work(group[0]), ignore_errors=True)
        after_group(results)
    return results


def _left(cells: Sequence[Cell], results: Mapping[Cell, Result]) -> str:
    """How long the cells to come will take: as long as those of their kind took, or else the mean."""

    def kind(cell: Cell) -> tuple[str, str, int, str]:
        return cell.task, cell.backbone, len(cell.members), cell.protocol

    seconds: dict[tuple[str, str, int, str], list[float]] = {}
    for cell, result in results.items():
        if not result.error:
            seconds.setdefault(kind(cell), []).append(result.seconds)
    every = [one for several in seconds.values() for one in several]
    if not every:
        return "time left not known yet"
    total = 0.0
    for cell in cells:
        if cell not in results:
            known = seconds.get(kind(cell), every)
            total += sum(known) / len(known)
    unit, size = ("h", 3600.0) if total > 5400 else ("min", 60.0) if total > 90 else ("s", 1.0)
    return f"about {total / size:.0f} {unit} left"


class _Speaker:
    """A listener that says where a long stage is, once a minute."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = time.monotonic()
        self._done, self._total = 0, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._say(event.message)
        elif isinstance(event, StageStarted):
            self._done, self._total = 0, event.total or 0
        elif isinstance(event, StageAdvanced):
            self._done += event.steps
            if time.monotonic() - self._said > _SPEAK_EVERY_S:
                self._said = time.monotonic()
                self._say(f"    {event.stage}: {self._done} of {self._total or 'unknown'}")


def _attempt(cell: Cell, site: Site, listener: Listener) -> Result:
    started = time.perf_counter()
    try:
        metrics, details = _TASKS[cell.task](cell, site, listener)
        return Result(metrics=metrics, details=details, seconds=time.perf_counter() - started)
    except CfaIndexError as error:
        return Result(error=str(error), seconds=time.perf_counter() - started)
    except Exception as error:  # one cell's failure, whatever it is, must not cost the others
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return Result(error=line, seconds=time.perf_counter() - started)


_Found = tuple[dict[str, float | None], dict[str, Any]]


def _evaluate(cell: Cell, site: Site, listener: Listener) -> _Found:
    category = _category(cell, site, listener)
    bundles = [_model(member, cell, category, site, listener) for member in cell.members]
    details: dict[str, Any] = {
        "images_train": bundles[0].manifest.images,
        "banks": [list(bundle.bank.vectors.shape) for bundle in bundles],
        "weights": bundles[0].manifest.weights.source,
        "versions": bundles[0].manifest.versions,
    }
    found: Evaluation | PublishedEvaluation
    if cell.protocol == "published" and all(member.train.epochs for member in cell.members):
        found = evaluate_published(bundles, category.test(), threads=site.threads, listener=listener)
        values = found.values()
        details |= {"best_epoch": {name: best.epoch if best else None for name, best in found.best().items()}}
    else:  # what was not trained has no epochs to choose from
        found = evaluate(bundles, category.test(), threads=site.threads, listener=listener)
        values = found.whole.values()
    details |= {"images_rejected": found.rejected, "masks": found.masks}
    return values, details


def _figures(cell: Cell, site: Site, listener: Listener) -> _Found:
    category = _category(cell, site, listener)
    bundle = _model(cell.members[0], cell, category, site, listener)
    test = category.test()
    found = evaluate(bundle, test, threads=site.threads, listener=listener)
    folder = site.output / "figures" / cell.category
    drawn = draw_figures(bundle, test, found, folder, threads=site.threads, listener=listener)
    return {}, {"figures": [file.relative_to(site.output).as_posix() for file in drawn]}


def _complexity(cell: Cell, site: Site, listener: Listener) -> _Found:
    """Table 1 does not need the data: see `benchmarks.complexity`."""
    rows = measure_table1(
        images=_QUICK_IMAGES if cell.quick else _IMAGES,
        quick=cell.quick,
        threads=site.threads,
        say=lambda line: listener(Notice(message=f"    {line}")),
    )
    return {}, {"rows": [row.to_dict() for row in rows]}


def _category(cell: Cell, site: Site, listener: Listener) -> Category:
    """The images of a cell; a rotated copy is drawn first, once for each seed (Table 3)."""
    upright = open_category(site.data_root, cell.category)
    if not cell.rotated:
        return upright
    size_px = cell.members[0].features.size_px
    spec = RotationSpec(resize_px=round(size_px / CROP_RATIO), crop_px=size_px, seed=cell.seed)
    copy = site.output / "rotated" / f"seed-{cell.seed}"
    rotate_category(upright, copy, spec, threads=site.threads, listener=listener)
    return open_category(copy, cell.category)


def _model(member: ModelSpec, cell: Cell, category: Category, site: Site, listener: Listener) -> ModelBundle:
    """A member, built and trained unless an earlier cell of the group, or a killed run, has done so."""
    work = site.work(cell)
    models, features = work / "models" / digest(member.to_dict()), work / "features"
    weights = site.weights_of(member.features.backbone)
    folder = models / category.name
    manifest = _manifest(folder)
    if manifest is None:
        manifest = build(
            GoodImages(category=category.name, source=category.folder, images=category.train_good()),
            member,
            backbone=load_backbone(
                member.features.backbone,
                member.features.strides,
                size_px=member.features.size_px,
                weights=weights,
            ),
            models_dir=models,
            features_dir=features,
            device=resolve_device(site.device),
            threads=site.threads,
            embed_weights=False,  # they would be copied once a model
            listener=listener,
        ).manifest
    keep_epochs = cell.protocol == "published"
    trained = manifest.action == "train" and (not keep_epochs or _EPOCHS_FILE in manifest.files)
    if member.train.epochs and not trained:
        train(
            models,
            category.name,
            member.train,
            features_dir=features,
            device=site.device,
            weights=weights,
            keep_epochs=keep_epochs,
            listener=listener,
        )
    return ModelBundle.load(folder, device=site.device, weights=weights)


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(current_generation(folder))
    except BundleError:  # there is none, or it is damaged: build again
        return None


_TASKS: Mapping[Task, Callable[[Cell, Site, Listener], _Found]] = MappingProxyType(
    {"complexity": _complexity, "evaluate": _evaluate, "figures": _figures}
)


def _result_file(site: Site, cell: Cell) -> Path:
    settings = {
        **cell.to_dict(),
        "data": data_digest(site.data_root / cell.category) if cell.category else "",
    }
    return site.output / "cells" / f"{cell.task}-{cell.category or 'all'}-{digest(settings)}.json"


@cache
def data_digest(folder: Path) -> str:
    """Names and sizes of all files of a category, so that other images make other cells."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[path.relative_to(folder).as_posix(), path.stat().st_size] for path in files])


def read_result(site: Site, cell: Cell) -> Result | None:
    """The result of a cell; None where there is none, or its file is damaged or of other settings."""
    try:
        document = json.loads(_result_file(site, cell).read_text())
        said = document.pop("digest")
        if said != digest(document) or document["cell"] != json.loads(json.dumps(cell.to_dict())):
            return None
        return Result(**document["result"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_result(site: Site, cell: Cell, result: Result) -> None:
    document = {"schema_version": 1, "cell": cell.to_dict(), "result": asdict(result)}
    write_json(_result_file(site, cell), {**document, "digest": digest(document)})
