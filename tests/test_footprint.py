"""Bytes on a card, against numbers worked by hand, and against what the CPU's objects hold."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
from vectors import clustered

from cfa_index.backbones.forward import LiveBytes
from cfa_index.bank import MemoryBank, build_faiss, exact_sq_distances
from cfa_index.bank.builder import ivf_of
from cfa_index.descriptor import initial_descriptor
from cfa_index.footprint import (
    Footprint,
    granted_bytes,
    half_footprint,
    in_words,
    ivf_footprint,
    ivf_pq_footprint,
    largest_of,
    memories_footprint,
    points_footprint,
    scoring_footprint,
    search_buffers,
    training_footprint,
)
from cfa_index.specs import DescriptorSpec, TrainSpec
from cfa_index.workflows.trainer import Trainer

MIB, GIB = 1 << 20, 1 << 30


def sizes(footprint: Footprint) -> dict[str, int]:
    return {part.name: part.size_bytes for part in footprint.parts}


def test_parts_add_up_and_the_line_names_the_largest_first() -> None:
    both = Footprint.of("less", small_part=3 * MIB, none=0) + Footprint.of("fewer", large=5 * GIB // 2)
    assert both.total == 3 * MIB + 5 * GIB // 2
    assert [part.name for part in both.largest(1)] == ["large"]
    assert both.describe() == "2.5 GiB (large 2.5 GiB, small part 3 MiB)"
    assert Footprint().describe() == "0 bytes"
    assert largest_of([Footprint(), both]) is both


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (256 * MIB, "256 MiB"), (79 * GIB, "79 GiB")],
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert in_words(size) == words


def test_memories_are_what_the_tensor_holds() -> None:
    vectors = clustered(300, 24)
    bank = MemoryBank(vectors, torch.device("cpu"))
    assert sizes(memories_footprint(300, 24)) == {"memories": bank.tensor.nbytes, "norms": 1_200}


def test_points_that_are_compressed_by_hand() -> None:
    """Of each point a distance and a cell, these sorted, and two numbers of rows."""
    assert sizes(points_footprint(300, 24)) == {"points": 300 * 24 * 4, "cells": 300 * (12 + 12 + 8 + 8)}
    assert sizes(points_footprint(300, 24, half_floats=True))["points"] == 300 * 24 * 2


def test_half_floats_lie_beside_the_memories() -> None:
    # 300 x 24 halves are 14,400 bytes, 300 norms 1,200: rounded up to 256 each, 14,592 and 1,280.
    assert sizes(half_footprint(300, 24)) == {"half floats": 14_592 + 1_280}
    assert faiss.IndexScalarQuantizer(24, faiss.ScalarQuantizer.QT_fp16).sa_code_size() == 24 * 2


def test_lists_of_an_ivf_by_hand() -> None:
    # Lists of 40 and 1: 64 and 32 places of 8 floats, 2,048 and 1,024 bytes; rows of 8 bytes, 320 and 8, each in
    # steps of 256: 512 and 256. Two centroids of 8 floats, two norms, and three vectors of two 8-byte entries take
    # one step each.
    lists, cells = ivf_footprint([40, 1], 8).parts
    assert lists.size_bytes == 2_048 + 1_024 + 512 + 256
    assert cells.size_bytes == 5 * 256
    # A byte a dimension: 512 and 256; and 16 trained floats in one step.
    assert ivf_footprint([40, 1], 8, code_bits=8).parts[0].size_bytes == 512 + 256 + 256 + 512 + 256


def test_lists_of_a_product_quantiser_by_hand() -> None:
    # 100 codes of 4 bytes: 512 in steps of 256; rows 800: 1,024; 256 centres of 8 floats in two orders: 16,384.
    lists, cells = ivf_pq_footprint([100], 8, quantisers=4).parts
    assert lists.size_bytes == 512 + 1_024 + 16_384
    assert cells.size_bytes == 5 * 256


@pytest.mark.parametrize(("factory", "bits"), [("IVF16,Flat", 32), ("IVF16,SQfp16", 16), ("IVF16,SQ8", 8)])
def test_an_ivf_takes_what_its_file_takes_and_the_places_that_stay_empty(factory: str, bits: int) -> None:
    width = 32
    index = build_faiss(clustered(2_000, width), factory, seed=0).index
    ivf = ivf_of(index)
    assert ivf.code_size == width * bits // 8
    if hasattr(ivf, "sq"):
        assert ivf.sq.trained.size() == (2 * width if bits == 8 else 0)
    found = [ivf.invlists.list_size(cell) for cell in range(16)]
    estimate = ivf_footprint(found, width, code_bits=bits).total
    file = faiss.serialize_index(index).nbytes
    most_empty = 16 * (31 * ivf.code_size + 2 * 255) + 6 * 255 + 3 * 16 * 8
    assert file - 1024 < estimate < file + most_empty  # the file has a header


def test_a_product_quantiser_has_as_many_codes_and_centres_on_the_cpu() -> None:
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(32), 32, 4, 8, 8)
    assert (index.code_size, index.pq.centroids.size()) == (8, 256 * 32)
    lists = ivf_pq_footprint([32] * 4, 32, quantisers=8).parts[0].size_bytes
    assert lists == 4 * 32 * index.code_size + 2 * 4 * index.pq.centroids.size() + 4 * 32 * 8


def test_a_search_of_an_image_fits_into_the_temporary_memory() -> None:
    # 784 queries of 3,136 memories: two tiles of 512 x 3,136 distances.
    buffers = search_buffers(784, 3_136, 1_536, 6)
    assert buffers == [
        4 * 784,
        *[4 * 512 * 3_136] * 2,
        *[4 * 512 * 6] * 2,
        *[8 * 512 * 6] * 2,
    ]
    assert sum(buffers) < 256 * MIB


def test_a_search_of_a_million_memories_has_tiles_of_a_gibibyte() -> None:
    # 512 rows by 262,144 columns, 512 MiB each.
    assert search_buffers(784, 1_000_000, 64, 6)[1:3] == [GIB // 2] * 2
    # Half floats are looked through twice as many at a time; their tiles of distances are floats all the same.
    halves = search_buffers(784, 1_000_000, 64, 6, half_floats=True)
    assert halves[0] == 2 * 784 * 64
    assert halves[2:4] == [GIB] * 2
    # A narrow bank has 1,024 rows, and half the columns for it.
    assert search_buffers(2_000, 1_000_000, 32, 6)[1] == 4 * 1_024 * 131_072
    assert search_buffers(0, 100, 32, 6) == []


@pytest.mark.parametrize(("card_bytes", "most"), [(80, 1_536), (8, 1_024), (4, 512)])
def test_faiss_never_takes_more_than_its_share_of_a_card(card_bytes: int, most: int) -> None:
    assert granted_bytes(4 * GIB, card_bytes * GIB) == most * MIB
    assert granted_bytes(256 * MIB, card_bytes * GIB) == 256 * MIB


def test_ranking_again_holds_two_vectors_a_query_beside_the_queries() -> None:
    n, width, k = 64, 48, 3
    x = torch.empty((n, width), device="meta")
    ids = torch.empty((n, k), dtype=torch.int64, device="meta")
    with LiveBytes() as live:
        exact_sq_distances(x, torch.empty((500, width), device="meta"), ids)
    scored = sizes(
        scoring_footprint(images=1, size_px=8, network_bytes=0, patches=n, width=width, k=k, shortlist=k)
    )
    assert scored["re ranking"] == 2 * 4 * n * width * k
    bank = 4 * 500 * width
    assert bank + scored["re ranking"] <= live.peak <= bank + scored["re ranking"] + 2 * 4 * n * k


def test_scoring_takes_what_its_largest_step_takes() -> None:
    shape = {"images": 2, "size_px": 16, "patches": 4, "width": 4, "k": 3, "shortlist": 3}
    forward = scoring_footprint(network_bytes=10_000, **shape)
    assert sizes(forward) == {"pixels": 2 * 3 * 16 * 16, "network": 10_000}
    # 512 bytes of maps of 16 x 16 floats each are more than 8 patches of 4 floats and their search.
    maps = scoring_footprint(network_bytes=0, **shape)
    assert sizes(maps) == {"maps": 2 * 16 * 16 * 4, "neighbours": 8 * 3 * 12}
    search = scoring_footprint(network_bytes=0, **{**shape, "width": 800})
    assert sizes(search) == {"patches": 25_600, "neighbours": 8 * 6 * 12, "re ranking": 3 * 51_200}


@pytest.mark.parametrize(
    ("images", "shapes", "gamma_d"),
    [
        (4, ((16, 28, 28), (32, 14, 14)), 1.0),
        (2, ((128, 14, 14), (256, 7, 7)), 1.0),
        (4, ((64, 28, 28), (128, 14, 14), (256, 7, 7)), 0.25),
    ],
)
def test_a_training_step_holds_what_is_estimated(
    images: int, shapes: tuple[tuple[int, int, int], ...], gamma_d: float
) -> None:
    spec = DescriptorSpec(init="he", standardise=False, gamma_d=gamma_d)
    phi = initial_descriptor(spec, [shape[0] for shape in shapes], None, seed=0)
    vectors = np.random.default_rng(0).standard_normal((50, phi.width), dtype=np.float32)
    trainer = Trainer(phi, MemoryBank(vectors, torch.device("cpu")), TrainSpec(), 1.0)
    k = trainer.spec.attract + trainer.spec.repel
    patches = images * shapes[0][1] * shapes[0][2]

    def step() -> None:
        trainer.step([torch.ones((images, *shape), dtype=torch.float16) for shape in shapes])

    step()  # its moments are there from then on
    state = [one for kept in trainer.optimizer.state.values() for one in kept.values()]
    there = sum(one.nbytes for one in [*phi.parameters(), *state])
    with LiveBytes() as live:
        step()
    found = patches * k * 12  # what FAISS gives is not made by torch
    estimate = training_footprint(images=images, shapes=shapes, width=phi.width, k=k).total
    assert 0.85 * (there + live.peak + found) <= estimate <= 1.02 * (there + live.peak + found)
