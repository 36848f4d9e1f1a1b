"""What holds for the bank of every method, made of a store."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from fake_card import fake_card
from numpy.typing import NDArray

from cfa_index.descriptor import PatchDescriptor, initial_descriptor
from cfa_index.errors import BankError, CardMemoryError, SpecError
from cfa_index.events import Event, StageAdvanced, StageEnded, StageStarted
from cfa_index.specs import BankSpec, Compression, DescriptorSpec, FeatureSpec, Geometry
from cfa_index.store import PatchStore, StoredImage, StoreHeader, StoreWriter
from cfa_index.workflows.compression import compress_store, patch_stream
from cfa_index.workflows.extract import inspected_cells

METHODS = get_args(Compression)
PATCH_METHODS = ("coreset", "random", "full")
IMAGES, ROWS, CHANNELS = 6, [0, 2, 3, 5], (5, 7)


def make_store(folder: Path, geometry: Geometry = "whole") -> PatchStore:
    """Six made-up pyramids of 4 x 4 patches; of a letterbox, those of a wide image."""
    images = [
        StoredImage(uri=f"{row}.png", size=1, mtime_ns=1, sha256="0" * 64, width=128, height=32)
        for row in range(IMAGES)
    ]
    header = StoreHeader(
        source="/data",
        features=FeatureSpec(backbone="resnet18", strides=(8, 16), geometry=geometry, size_px=32),
        weights_sha256="0" * 64,
        channels=CHANNELS,
    )
    draw = torch.Generator().manual_seed(0)
    levels = [torch.randn(IMAGES, 5, 4, 4, generator=draw), torch.randn(IMAGES, 7, 2, 2, generator=draw)]
    with StoreWriter(folder / f"{geometry}.zarr", header, images) as writer:
        writer.write_shard(0, levels, images)
        return writer.finish()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PatchStore:
    return make_store(tmp_path_factory.mktemp("whole"))


PHI: PatchDescriptor = initial_descriptor(
    DescriptorSpec(init="torch", gamma_d=0.5, standardise=False), CHANNELS, None, seed=0
)


def all_patches(store: PatchStore) -> dict[tuple[int, int], NDArray[np.float32]]:
    """Every inspected patch by its row and cell."""
    return {
        (row, cell): patch
        for row, cells, patches in patch_stream(store, ROWS, PHI)()
        for cell, patch in zip(cells.tolist(), patches, strict=True)
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_bank_is_finite_near_the_data_and_knows_its_sources(store: PatchStore, method: Compression) -> None:
    vectors, sources = compress_store(store, ROWS, PHI, BankSpec(method=method, size=9), seed=0)
    patches = all_patches(store)
    every = np.stack(list(patches.values()))
    memories = len(every) if method == "full" else 9
    assert vectors.shape == (memories, 6)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    # Each memory is a patch, or a mean of patches: within their range in every dimension.
    assert (vectors >= every.min(axis=0) - 1e-6).all()
    assert (vectors <= every.max(axis=0) + 1e-6).all()
    assert sources.rows.shape == sources.cells.shape == (memories,)
    for vector, row, cell in zip(vectors, sources.rows.tolist(), sources.cells.tolist(), strict=True):
        to_source = np.linalg.norm(vector - patches[row, cell])
        assert to_source == pytest.approx(np.linalg.norm(every - vector, axis=1).min(), abs=1e-6)
        assert to_source == 0 or method not in PATCH_METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_repeats_a_bank(store: PatchStore, method: Compression) -> None:
    spec = BankSpec(method=method, size=9, iterations=2)
    (first, first_sources), (again, again_sources) = (
        compress_store(store, ROWS, PHI, spec, seed=1) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_sources.cells, again_sources.cells)
    other, _ = compress_store(store, ROWS, PHI, spec, seed=2)
    assert np.array_equal(first, other) == (method == "full")


@pytest.mark.parametrize("method", METHODS)
def test_every_device_makes_the_bank_of_the_cpu(
    store: PatchStore, device: torch.device, method: Compression
) -> None:
    spec = BankSpec(method=method, size=9, iterations=3, coverage=0.4)
    vectors, sources = compress_store(store, ROWS, PHI, spec, seed=1)
    found, places = compress_store(store, ROWS, copy.deepcopy(PHI).to(device), spec, seed=1)
    np.testing.assert_allclose(found, vectors, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(places.rows, sources.rows)
    np.testing.assert_array_equal(places.cells, sources.cells)


def test_what_crosses_to_the_host_of_a_hybrid_is_counted(store: PatchStore) -> None:
    spec = BankSpec(method="hybrid", size=9, iterations=3, coverage=0.4)
    with fake_card() as card:
        compress_store(store, ROWS, copy.deepcopy(PHI).to("meta:0"), spec, seed=1)
        batches, images = 1, len(ROWS)
        k_means, sources, picks = 3 + 1, 2, 1 + 1  # a look a step; distances and rows; a look and the rows
        assert len(card.to_host) == 2 * batches + k_means + sources + 2 * images + picks
        assert not card.waits


def test_a_card_that_runs_out_is_one_line(store: PatchStore) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with fake_card(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("cfa_index.bank.faiss_gpu.brute_force", no_room)
        with pytest.raises(CardMemoryError, match=r"making the bank on meta:0, .* smaller --bank-size"):
            compress_store(store, ROWS, copy.deepcopy(PHI).to("meta:0"), BankSpec(size=9), seed=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_stage_reaches_its_total(store: PatchStore, method: Compression) -> None:
    events: list[Event] = []
    compress_store(
        store, ROWS, PHI, BankSpec(method=method, size=5, iterations=2), seed=0, listener=events.append
    )
    for started in [event for event in events if isinstance(event, StageStarted)]:
        steps = [e.steps for e in events if isinstance(e, StageAdvanced) and e.stage == started.stage]
        assert sum(steps) == started.total, started
        assert any(isinstance(e, StageEnded) and e.stage == started.stage for e in events)


@pytest.mark.parametrize(("share", "memories"), [(1.0, 64), (0.25, 16), (1e-6, 1)])
@pytest.mark.parametrize("method", ["coreset", "random", "kmeans", "hybrid"])
def test_a_share_counts_all_patches(
    store: PatchStore, method: Compression, share: float, memories: int
) -> None:
    spec = BankSpec(method=method, size=None, share=share, iterations=2)
    assert len(compress_store(store, ROWS, PHI, spec, seed=0)[0]) == memories


@pytest.mark.parametrize("method", PATCH_METHODS)
def test_a_letterbox_s_padding_is_in_no_bank(tmp_path: Path, method: Compression) -> None:
    store = make_store(tmp_path, "letterbox")  # rows 12 .. 20 of 32: the patch rows 1 and 2 of 4
    shown = set(inspected_cells(store, 0).tolist())
    assert shown == set(range(4, 12))
    vectors, sources = compress_store(store, ROWS, PHI, BankSpec(method=method, size=None, share=0.5), seed=0)
    assert len(vectors) == (32 if method == "full" else 16)
    assert set(sources.cells.tolist()) <= shown


@pytest.mark.parametrize("method", ["coreset", "random", "kmeans", "hybrid", "mean", "ema"])
def test_more_memories_than_patches_are_refused(store: PatchStore, method: Compression) -> None:
    with pytest.raises(BankError, match=r"(64|h\*w = 16)"):
        compress_store(store, ROWS, PHI, BankSpec(method=method, size=65), seed=0)


def test_a_share_of_unknown_patches_has_no_size() -> None:
    with pytest.raises(SpecError, match="the number of good patches"):
        BankSpec(size=None, share=0.1).memories(16)
    assert BankSpec(size=7, share=0.1).memories(16) == 7
    assert BankSpec(method="full", size=7).memories(16, 64) == 64
