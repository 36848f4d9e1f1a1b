"""The maths of the product against plain float64 loops (reference.py), to 1e-5 relative, on random cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings, strategies as st
from made_up import Workplace, workplace
from numpy.typing import NDArray

from cfa_index.bank import MemoryBank, kmeans
from cfa_index.bundle import ModelBundle
from cfa_index.compress import ema_bank
from cfa_index.hypersphere import HypersphereLoss, certainty_scores, nearest_distances, neighbor_sq_distances
from cfa_index.specs import TrainSpec
from cfa_index.workflows.train import open_store, train

CPU = torch.device("cpu")
Kind = Literal["random", "duplicates", "ties"]
KINDS = st.sampled_from(["random", "duplicates", "ties"])


def vectors(kind: Kind, rng: np.random.Generator, count: int, width: int = 5) -> NDArray[np.float32]:
    """(count, width): all different; every third a copy of the first; or on a grid, many equally far."""
    if kind == "ties":
        return rng.integers(-1, 2, (count, width)).astype(np.float32)
    drawn = rng.normal(size=(count, width)).astype(np.float32)
    if kind == "duplicates":
        drawn[::3] = drawn[0]
    return drawn


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=KINDS,
    attract=st.integers(1, 4),
    repel=st.integers(0, 4),
    count=st.sampled_from([1, 7, 25]),  # above 20 queries FAISS takes a matrix product
    # From below all distances to above all. None puts a distance on the grid on a hinge, where any slope
    # between the two sides' will do.
    radius=st.sampled_from([1e-5, 0.6, 1.3, 2.1, 3.3, 10.1]),
    margin=st.sampled_from([0.0, 0.1, 2.0]),
)
def test_losses_and_gradients(
    seed: int, kind: Kind, attract: int, repel: int, count: int, radius: float, margin: float
) -> None:
    rng = np.random.default_rng(seed)
    bank, patches = vectors(kind, rng, 10), vectors(kind, rng, count)
    phi = torch.tensor(patches, requires_grad=True)
    memory = MemoryBank(bank, CPU)
    found = memory.search(phi.detach(), attract + repel)
    loss = HypersphereLoss(attract=attract, repel=repel, margin=margin, radius=radius)
    terms = loss(neighbor_sq_distances(phi, memory.tensor, found.ids, found.sq_distances))
    torch.autograd.backward([terms.total])
    assert phi.grad is not None
    assert loss.radius.grad is not None

    exact_patches, exact_bank = patches.astype(float), bank.astype(float)
    l_att, l_rep = reference.losses(
        exact_patches, exact_bank, attract=attract, repel=repel, radius=radius, margin=margin
    )
    by_patch, by_radius = reference.loss_gradients(
        exact_patches,
        exact_bank,
        attract=attract,
        repel=repel,
        radius=radius,
        margin=margin,
        neighbors=found.ids.tolist() if kind == "ties" else None,
    )
    terms_scale = 10 + radius**2  # of the two numbers whose difference a term is
    assert terms.attraction.item() == pytest.approx(l_att, rel=1e-5, abs=1e-6 * terms_scale)
    assert terms.repulsion.item() == pytest.approx(l_rep, rel=1e-5, abs=1e-6 * terms_scale)
    np.testing.assert_allclose(phi.grad.numpy(), by_patch, rtol=1e-5, atol=1e-5 * 4 / count)
    assert loss.radius.grad.item() == pytest.approx(by_radius, rel=1e-5, abs=0)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=KINDS,
    memories=st.sampled_from([1, 2, 3, 5, 9, 9, 9]),
    images=st.integers(1, 4),
    beta=st.sampled_from([0.25, 0.5, 1.0]),  # exact in float32: what is a tie stays one
)
def test_algorithm_1(seed: int, kind: Kind, memories: int, images: int, beta: float) -> None:
    rng = np.random.default_rng(seed)
    data = [vectors(kind, rng, 9) for _ in range(images)]

    def stream() -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
        for row, patches in enumerate(data):
            yield row, np.arange(len(patches)), patches

    def by_loops(start: NDArray[np.float64]) -> NDArray[np.float64]:
        return reference.ema([patches.astype(float) for patches in data], start, beta)

    start = kmeans(data[0], memories, iterations=3, seed=0).astype(float)
    got = ema_bank(stream, memories, beta=beta, iterations=3, seed=0)
    expected = by_loops(start)
    if memories < 9:  # the centre of two patches is as far from one as from the other, up to rounding
        assume(all(np.allclose(by_loops(near), expected, atol=1e-4) for near in (start - 1e-6, start + 1e-6)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=KINDS,
    neighbors=st.integers(1, 6),
    count=st.sampled_from([1, 7, 25]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),  # Eq. 5 depends on it
)
def test_scores(seed: int, kind: Kind, neighbors: int, count: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    bank, patches = (np.float32(scale) * vectors(kind, rng, size) for size in (10, count))
    patches[0] = bank[3]  # a normal patch itself
    found = MemoryBank(bank, CPU).search(torch.from_numpy(patches), neighbors, exact=True)
    exact_bank = bank.astype(float)
    distances = []
    for patch in patches.astype(float):
        rows = reference.nearest(patch, exact_bank, neighbors)
        distances.append([reference.sq_distance(patch, exact_bank[row]) ** 0.5 for row in rows])
    np.testing.assert_allclose(
        nearest_distances(found.sq_distances).numpy(), [min(row) for row in distances], rtol=1e-5
    )
    np.testing.assert_allclose(
        certainty_scores(found.sq_distances).numpy(),
        [reference.certainty_score(row) for row in distances],
        rtol=1e-5 * (1 + scale),  # an exponent's absolute error is a factor's relative one
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """6 images, 16 patches each in two levels, 20 memories in 12 dimensions, nothing held out."""
    place = workplace(tmp_path_factory.mktemp("place"), train=6, test=1)
    outcome = place.build(
        *("--size", 32, "--strides", "8,16", "--init", "he", "--gamma-d", 12 / 384),
        *("--bank-size", 20, "--held-out", 0),
    )
    assert outcome.code == 0, outcome
    return place


def trained_by_loops(
    place: Workplace, spec: TrainSpec, radius: float
) -> list[tuple[float, float, float, float]]:
    """A row an epoch from the same store, bank, phi_0 and order of the images."""
    bundle = ModelBundle.load(place.models / "weave", device="cpu")
    store = open_store(bundle, place.features)
    phi = bundle.initial_descriptor
    mean, std = (values.numpy().astype(float) for values in (phi.mean, phi.std))
    images = {}
    for row in store.good_rows:
        levels = [level[0].numpy().astype(float) for level in store.read([row])]
        full = np.concatenate([reference.bilinear(level, 4, 4) for level in levels])  # (D, 4, 4)
        patches = (full.reshape(len(mean), -1).T - mean) / std
        xy = [(2 * x / 3 - 1, 2 * y / 3 - 1) for y in range(4) for x in range(4)]
        images[row] = np.concatenate([patches, xy], axis=1)
    epochs = []
    for epoch in range(spec.epochs):
        order = np.random.default_rng([0, epoch]).permutation(store.good_rows).tolist()
        epochs.append([order[at : at + spec.batch_size] for at in range(0, len(order), spec.batch_size)])
    return reference.training(
        images,
        bundle.bank.vectors.astype(float),
        phi.weight.detach().numpy().astype(float),
        phi.bias.detach().numpy().astype(float),
        radius,
        epochs=epochs,
        attract=spec.attract,
        repel=spec.repel,
        margin=spec.margin,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        loss_scale=spec.loss_scale,
        learn_radius=spec.learn_radius,
    )


@pytest.mark.parametrize("learn_radius", [True, False])
@pytest.mark.parametrize(
    ("attract", "repel", "radius", "loss_scale", "learning_rate"),
    [
        (3, 0, 1e-5, 1000.0, 1e-3),  # L_att only, from the paper's radius, on the published code's scale
        (2, 3, 3.4, 1.0, 1e-3),  # among the distances: both losses at work
        (1, 3, 20.0, 1.0, 1e-3),  # beyond them all: L_rep only
        (3, 0, 3.5, 1.0, 1e-2),  # soon all are inside and the gradient is gone: AMSGrad's maximum counts
    ],
)
def test_a_training_epoch_by_epoch(
    built: Workplace,
    attract: int,
    repel: int,
    radius: float,
    loss_scale: float,
    learning_rate: float,
    learn_radius: bool,
) -> None:
    spec = TrainSpec(
        epochs=3,
        batch_size=4,  # the last batch of an epoch has 2
        learning_rate=learning_rate,
        weight_decay=0.05,
        attract=attract,
        repel=repel,
        radius=radius,
        learn_radius=learn_radius,
        loss_scale=loss_scale,
    )
    report = train(built.models, "weave", spec, features_dir=built.features)
    expected = trained_by_loops(built, spec, radius)
    got = [(row.attraction, row.repulsion, row.radius, row.neighbor_distance) for row in report.log]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
