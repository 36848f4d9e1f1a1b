"""What a study will do and how long it may take: its cells, those that are done, those that cannot be made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch

from cfa_index.backbones import Backbone
from cfa_index.errors import BankError, ImageError, SpecError
from cfa_index.events import Listener, ignore
from cfa_index.files import sha256_of_json
from cfa_index.images import Category, count_views, load_batches
from cfa_index.report import StudyRow
from cfa_index.specs import CardSpec, FeatureSpec, ModelSpec
from cfa_index.workflows.build import check_enough_patches, versions
from cfa_index.workflows.study_cells import Cell, StudySpec
from cfa_index.workflows.study_estimate import Amounts, guess_seconds, pace, probe_products_per_s
from cfa_index.workflows.study_folder import StudyFolder
from cfa_index.workflows.study_images import TIMED_IMAGES, StudyImages, split_of, stored_images
from cfa_index.workflows.study_measure import BATCHES

_PROBE_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell before it is measured.

    Attributes:
        cell: the settings that are swept.
        spec: all settings; None where `error` says why no model can have them.
        key: digest of settings, images and measuring; empty while the features are not extracted.
        done: the row, where it was measured before.
        guess_s: seconds that it is expected to take, had it to be measured.
    """

    cell: Cell
    spec: ModelSpec | None
    key: str = ""
    done: StudyRow | None = None
    guess_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study would do.

    Attributes:
        cells: in the order in which they are measured.
        features_s: seconds to extract the features that are missing.
        pace: what the guesses are multiplied by, from the cells that were measured.
    """

    cells: tuple[PlannedCell, ...]
    features_s: float
    pace: float

    def cell_s(self, planned: PlannedCell) -> float:
        """Seconds that a cell is expected to take; 0 where it is done or cannot be made."""
        return 0.0 if planned.done or planned.error else self.pace * planned.guess_s

    @property
    def left_s(self) -> float:
        """Seconds that the study is expected to take from here."""
        return self.features_s + sum(self.cell_s(planned) for planned in self.cells)

    def describe(self) -> str:
        """In one line, such as `20 cells, 3 measured before; about 6 min to go`."""
        done = sum(planned.done is not None for planned in self.cells)
        impossible = sum(bool(planned.error) for planned in self.cells)
        parts = [f"{len(self.cells)} cells"]
        parts += [f"{done} measured before"] if done else []
        parts += [f"{impossible} that cannot be made"] if impossible else []
        features = f", of which features {duration(self.features_s)}" if self.features_s else ""
        return f"{', '.join(parts)}; about {duration(self.left_s)} to go{features}"


def duration(seconds: float) -> str:
    """A time for a person: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def plan_study(
    category: Category,
    spec: ModelSpec,
    sweep: StudySpec,
    folder: Path,
    *,
    backbone: Backbone,
    features_dir: Path,
    device: torch.device,
    card: CardSpec = CardSpec(),
    threads: int = 2,
    listener: Listener = ignore,
) -> StudyPlan:
    """The cells of a study and how long they may take: a probe of a few seconds, and nothing is written.

    Args: see `study`.

    Raises:
        DatasetError: there are no good images.
        OutputError: the folder is a file, or belongs to the study of another category.
    """
    place = StudyFolder(folder, category.name)
    place.check()
    backbone = backbone.put_on(device)
    images = stored_images(category, spec, backbone=backbone, features_dir=features_dir)
    if images is not None:
        return plan_cells(images, spec, sweep, place, device, card, listener)
    good, test = category.train_good(), split_of(category)
    started = time.perf_counter()
    for batch in load_batches(good[:_PROBE_IMAGES], spec.features, batch_size=_PROBE_IMAGES, threads=threads):
        with torch.inference_mode():
            backbone.pyramid(batch.pixels.to(device))[0][:1].cpu()
    image_s = (time.perf_counter() - started) / len(good[:_PROBE_IMAGES])
    good_views = _count(good, spec.features)
    test_views = _count([image.path for image in test], spec.features)
    amounts = _amounts(
        good_views - int(good_views * spec.held_out),
        test_views,
        min(test_views or good_views, TIMED_IMAGES),
        sum(backbone.channels),
        sweep,
    )
    cells = _guessed_cells(spec, sweep, amounts)
    return StudyPlan(cells=tuple(cells), features_s=image_s * (len(good) + len(test)), pace=1.0)


def plan_cells(
    images: StudyImages,
    spec: ModelSpec,
    sweep: StudySpec,
    folder: StudyFolder,
    device: torch.device,
    card: CardSpec,
    listener: Listener,
) -> StudyPlan:
    """The plan for images whose features are there: cells that were measured before are found.

    A cell is another one when any setting, image, mask, weight or library differs, or how it is measured.
    """
    amounts = _amounts(
        len(images.fit_rows),
        len(images.test_store) if images.test_store else 0,
        len(images.timed[1]),
        sum(images.store.header.channels),
        sweep,
    )
    cells = []
    for planned in _guessed_cells(spec, sweep, amounts):
        key = sha256_of_json(
            {
                "spec": planned.spec.to_dict() if planned.spec else str(planned.cell),
                "images": images.identity,
                "measured": [sweep.repeat, sweep.queries, str(device), torch.get_num_threads()]
                + ([] if device.type == "cpu" else [card.to_dict()]),
                "versions": versions(),
            }
        )[:32]
        done = None if planned.error else folder.row(key, listener)
        cells.append(replace(planned, key=key, done=done))
    known = [(one.done.seconds or 0.0, one.guess_s) for one in cells if one.done]
    return StudyPlan(cells=tuple(cells), features_s=0.0, pace=pace(known))


def _guessed_cells(spec: ModelSpec, sweep: StudySpec, amounts: Amounts) -> Iterator[PlannedCell]:
    """The cells with their guesses; the first one of a bank pays for it."""
    products_per_s = probe_products_per_s(amounts.channels)
    for _, same_bank in groupby(sweep.cells(), key=lambda cell: cell.bank):
        for number, cell in enumerate(same_bank):
            try:
                whole = cell.spec(spec)
                check_enough_patches(whole, amounts.fit)
            except (BankError, SpecError) as error:
                yield PlannedCell(cell=cell, spec=None, error=str(error))
                continue
            guess_s = guess_seconds(whole, amounts, products_per_s, makes_bank=number == 0)
            yield PlannedCell(cell=cell, spec=whole, guess_s=guess_s)


def _count(images: Sequence[Path], features: FeatureSpec) -> int:
    """Views of some images; one that cannot be read counts as one."""
    views = 0
    for image in images:
        try:
            views += count_views(image, features)
        except ImageError:
            views += 1
    return views


def _amounts(fit: int, test: int, timed: int, channels: int, sweep: StudySpec) -> Amounts:
    return Amounts(
        fit=fit,
        test=test,
        timed=sweep.repeat * (timed + sum(BATCHES)),
        channels=channels,
        queries=sweep.queries,
    )
