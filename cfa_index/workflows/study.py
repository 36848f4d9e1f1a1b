"""Memory x latency x accuracy of many banks and indexes over one category, cell by cell, resumable."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from cfa_index.backbones import Backbone
from cfa_index.descriptor import needs_moments
from cfa_index.errors import BankError, CardMemoryError, DeviceError, SpecError
from cfa_index.events import Event, Listener, Notice, ignore, stage
from cfa_index.files import printable
from cfa_index.images import Category
from cfa_index.metrics import pareto_frontier
from cfa_index.moments import Moments
from cfa_index.report import StudyRow, accuracy_of, require_matplotlib, require_plotly
from cfa_index.specs import CardSpec, ModelSpec
from cfa_index.workflows.calibrate import calibrated_scorer
from cfa_index.workflows.extract import stored_frames
from cfa_index.workflows.indexing import index_bank, query_patches
from cfa_index.workflows.start import Start, make_start, patch_moments
from cfa_index.workflows.study_cells import StudySpec
from cfa_index.workflows.study_folder import StudyFolder
from cfa_index.workflows.study_images import StudyImages, extract_images
from cfa_index.workflows.study_measure import (
    measure_aurocs,
    measure_backbone_ms,
    measure_recall,
    measure_speed,
)
from cfa_index.workflows.study_plan import PlannedCell, StudyPlan, plan_cells

_NPY_HEADER_BYTES = 128


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """A study that was run to its end.

    Attributes:
        category, folder: of the study.
        rows: a cell each.
        facts: what holds for all rows, in words.
        files: the results: Parquet, page, plots.
        measured: cells that were measured now; the others were found.
        rejected: images that could not be read.
    """

    category: str
    folder: Path
    rows: tuple[StudyRow, ...]
    facts: tuple[str, ...]
    files: tuple[Path, ...]
    measured: int
    rejected: int


def study(
    category: Category,
    spec: ModelSpec,
    sweep: StudySpec,
    folder: Path,
    *,
    backbone: Backbone,
    features_dir: Path,
    device: torch.device,
    card: CardSpec = CardSpec(),
    build_words: Sequence[str] = ("cfa-index", "build"),
    threads: int = 2,
    listener: Listener = ignore,
) -> StudyReport:
    """Measure every cell that was not measured before, and write table, plots and page.

    The features are extracted once for all cells, of the good images and of the test split; a bank is made
    once for all its indexes. A cell that cannot be made, such as a bank of more memories than there are
    patches, is a row that says why. Labels of the test split choose nothing.

    Args:
        category: good images, and the test split where there is one.
        spec: what all cells have in common; bank method, size, gamma_d and index are the sweep's.
        sweep: the cells, and how long each is measured.
        folder: of the study; one that was stopped goes on.
        backbone: frozen, with the weights to use.
        features_dir: where the features are kept; a build uses those of the good images too.
        device: of the forward pass and of the search.
        card: what a bank may take of a card.
        build_words: a shell command that takes a cell's options, for the rows' `command`.
        threads: that decode.
        listener: told of progress and of the time that is left.

    Raises:
        DatasetError: no good image, or of one of the splits none can be read.
        ImageError: a mask cannot be read, or has another size than its image.
        OutputError: matplotlib or plotly is not installed; the folder is a file, belongs to the study of
            another category or is in use; or the disk is full or read-only.
        BankError: not one cell can be made.
        StoreError: see `extract`.
    """
    require_matplotlib()
    require_plotly()
    place = StudyFolder(folder, category.name)
    with place.held():
        backbone = backbone.put_on(device)
        images = extract_images(
            category,
            spec,
            backbone=backbone,
            features_dir=features_dir,
            device=device,
            threads=threads,
            listener=listener,
        )
        plan = plan_cells(images, spec, sweep, place, device, card, listener)
        listener(Notice(message=plan.describe()))
        rows: list[StudyRow] = []
        measured = 0
        with stage(listener, "study", len(plan.cells), "cells") as advance:
            left_s = plan.left_s
            for planned, row in _rows(
                plan, images, sweep, place, backbone, device, card, _notices_of(listener)
            ):
                rows.append(row)
                measured += not planned.done and not row.error
                left_s -= plan.cell_s(planned)
                advance(1, left_s=max(left_s, 0.0))
        rows = [
            replace(row, command=printable(planned.cell.command(build_words)))
            for planned, row in zip(plan.cells, rows, strict=True)
        ]
        if all(row.error for row in rows):
            raise BankError(
                expected="a study with a cell that can be made",
                got=f"{len(rows)} that cannot; the first one: {rows[0].error}",
                remedy="give other --bank-size, --method or --index",
            )
        rows = with_frontier(rows)
        facts = _facts(images, backbone, spec, device, rows)
        files = place.write_results(rows, title=f"Study of {printable(category.name)}", facts=facts)
    return StudyReport(
        category=category.name,
        folder=folder,
        rows=tuple(rows),
        facts=tuple(facts),
        files=tuple(files),
        measured=measured,
        rejected=images.rejected,
    )


def with_frontier(rows: Sequence[StudyRow]) -> list[StudyRow]:
    """The rows with `on_frontier` set: memory, median latency of an image, and accuracy.

    Accuracy is the image AUROC, and recall@1 where nothing is labelled.
    """
    accuracy = accuracy_of(list(rows))
    costs = [
        (row.resident_bytes, row.image_ms_p50, None if (value := accuracy.of(row)) is None else -value)
        for row in rows
    ]
    on_it = pareto_frontier(np.array(costs, dtype=np.float64).reshape(-1, 3))
    return [replace(row, on_frontier=bool(one)) for row, one in zip(rows, on_it, strict=True)]


def _rows(
    plan: StudyPlan,
    images: StudyImages,
    sweep: StudySpec,
    folder: StudyFolder,
    backbone: Backbone,
    device: torch.device,
    card: CardSpec,
    listener: Listener,
) -> Iterator[tuple[PlannedCell, StudyRow]]:
    """Each cell with its row, found or measured, in order."""
    moments: Moments | None = None
    backbone_ms: float | None = None
    for _, group in groupby(plan.cells, key=lambda planned: planned.cell.bank):
        same_bank = list(group)
        todo = [one.spec for one in same_bank if one.spec is not None and one.done is None]
        start: Start | None = None
        bank_s, no_bank = 0.0, ""
        if todo:
            if backbone_ms is None:
                backbone_ms = measure_backbone_ms(backbone, todo[0].features.size_px, sweep.repeat)
            if moments is None and needs_moments(todo[0].descriptor):
                moments = patch_moments(images.store, images.fit_rows, seed=todo[0].seed, listener=listener)
            began = time.perf_counter()
            try:
                start = make_start(
                    images.store,
                    images.fit_rows,
                    todo[0],
                    moments=moments,
                    device=device,
                    card=card,
                    listener=listener,
                )
            except (BankError, CardMemoryError, SpecError) as error:
                no_bank = str(error)
            bank_s = time.perf_counter() - began
        paid_s = bank_s  # by the first cell that needed it
        for planned in same_bank:
            if planned.done is not None:
                yield planned, planned.done
                continue
            if planned.spec is None or start is None:
                yield planned, _row(planned, error=planned.error or no_bank)
                continue
            began = time.perf_counter()
            try:
                row = _measured(planned, replace(start, spec=planned.spec), images, sweep, backbone, listener)
            except (BankError, DeviceError) as error:
                yield planned, _row(planned, error=str(error))
                continue
            seconds = paid_s + time.perf_counter() - began
            row = replace(row, bank_s=bank_s, seconds=seconds, backbone_ms=backbone_ms)
            paid_s = 0.0
            folder.keep(row)
            yield planned, row


def _measured(
    planned: PlannedCell,
    start: Start,
    images: StudyImages,
    sweep: StudySpec,
    backbone: Backbone,
    listener: Listener,
) -> StudyRow:
    """A cell's index built on the bank of `start` and all of it measured. Raises BankError, DeviceError."""
    began = time.perf_counter()
    start, _ = index_bank(
        start, images.store, held_rows=images.held_rows, fit_rows=images.fit_rows, listener=listener
    )
    index_s = time.perf_counter() - began if start.bank.index else 0.0
    spec, bank = start.spec, start.bank
    scorer = calibrated_scorer(backbone, start.phi_0, start, store=images.store, rows=images.fit_rows)
    unseen, rows, _ = images.unseen
    patches = query_patches(unseen, rows, start.phi_0.folded().cpu(), most=sweep.queries, seed=spec.seed)
    queries = torch.from_numpy(patches).to(bank.device)
    timed_store, timed = images.timed
    speed = measure_speed(
        scorer,
        timed_store.read(timed),
        stored_frames(timed_store, timed),
        queries,
        k=spec.score.neighbors,
        repeat=sweep.repeat,
    )
    recall_at_1, recall_at_3 = measure_recall(bank, queries)
    image_auroc, pixel_auroc = measure_aurocs(scorer, images)
    state = bank.index.state if bank.index else None
    vectors_bytes = bank.vectors.nbytes
    return replace(
        _row(planned),
        memories=len(bank),
        width=bank.vectors.shape[1],
        factory=state.factory if state else "Flat",
        parameters=state.describe_parameters() if state else "",
        resident_bytes=state.resident_bytes if state else vectors_bytes,
        index_bytes=state.resident_bytes if state else 0,
        vectors_bytes=vectors_bytes,
        index_disk_bytes=state.resident_bytes if state else 0,
        vectors_disk_bytes=_NPY_HEADER_BYTES + vectors_bytes,
        index_s=index_s,
        **asdict(speed),
        recall_at_1=recall_at_1,
        recall_at_3=recall_at_3,
        image_auroc=image_auroc,
        pixel_auroc=pixel_auroc,
    )


def _row(planned: PlannedCell, error: str = "") -> StudyRow:
    """A row with the settings alone."""
    cell = planned.cell
    return StudyRow(
        key=planned.key,
        method=cell.method,
        bank_size=cell.bank_size,
        gamma_d=cell.gamma_d,
        index=cell.index,
        error=error,
    )


def _notices_of(listener: Listener) -> Listener:
    """Of the stages inside a cell only what a person should read: the study's own progress is shown."""

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            listener(event)

    return listen


def _facts(
    images: StudyImages,
    backbone: Backbone,
    spec: ModelSpec,
    device: torch.device,
    rows: Sequence[StudyRow],
) -> list[str]:
    """What holds for all cells, in words."""
    features = spec.features
    defects = sum(image.is_defect for image in images.test)
    weights = ", random weights" if backbone.origin.is_random else ""
    store, unseen, name = images.unseen
    alone = statistics.median(row.backbone_ms for row in rows if row.backbone_ms is not None)
    return [
        f"{features.backbone}{weights}, {features.geometry} frame at {features.size_px} px, "
        f"strides {', '.join(map(str, features.strides))}",
        f"{len(images.store.images_in(images.fit_rows))} good images in the banks, "
        f"{len(images.store.images_in(images.held_rows))} held out",
        f"test split of {len(images.test)} images, {defects} with defects"
        if images.test
        else "no test split",
        f"recall and time on {len(store.images_in(unseen))} {name}"
        + (f"; times are of one tile of {features.tile_px} px" if features.tile_px else ""),
        f"the backbone alone takes {alone:.3g} ms an image",
        f"device {device}, threads {torch.get_num_threads()}",
    ]
