"""Maps against torch's interpolation, SciPy's Gaussian and plain loops."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import ndimage
from torch.nn import functional

from cfa_index.errors import SpecError
from cfa_index.maps import MapMaker, image_scores, smoothing_matrix
from cfa_index.resample import fuse_maps, to_source

WHOLE: dict[str, Any] = {"offset_x": 0.0, "offset_y": 0.0}


def oracle(patch_scores: torch.Tensor, size_px: int, sigma_px: float) -> npt.NDArray[np.float64]:
    """Upsample with torch, smooth with SciPy, both in float64."""
    size = (size_px, size_px)
    upsampled = functional.interpolate(
        patch_scores.double()[:, None], size=size, mode="bilinear", align_corners=False
    )[:, 0].numpy()
    if sigma_px == 0:
        return upsampled
    return np.stack(
        [ndimage.gaussian_filter(one, sigma_px, mode="reflect", truncate=4.0) for one in upsampled]
    )


@settings(deadline=None)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size_px=st.integers(1, 40),
    sigma_px=st.sampled_from([0.0, 0.05, 0.5, 1.0, 2.7, 4.0, 15.0]),
    batch=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_map_is_interpolation_then_gaussian(
    grid: tuple[int, int], size_px: int, sigma_px: float, batch: int, seed: int
) -> None:
    scores = torch.rand(batch, *grid, generator=torch.Generator().manual_seed(seed))
    maps = MapMaker(grid, size_px, sigma_px)(scores)
    assert maps.shape == (batch, size_px, size_px)
    assert maps.dtype == torch.float32
    if batch:
        np.testing.assert_allclose(maps.numpy(), oracle(scores, size_px, sigma_px), atol=1e-5)


def test_the_defaults_size(device: torch.device) -> None:
    scores = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    on_device = MapMaker((28, 28), 224, 4.0, device)(scores.to(device))
    maps = on_device.cpu()
    np.testing.assert_allclose(maps.numpy(), oracle(scores, 224, 4.0), atol=1e-5)
    assert torch.equal(image_scores(on_device).cpu(), maps.flatten(1).max(dim=1).values)


def test_upsampling_by_hand() -> None:
    # Two cells on four pixels: centres at -0.25 (held at 0), 0.25, 0.75, 1.25 (held at 1).
    expected = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    assert torch.equal(smoothing_matrix(2, 4, 0.0), expected)


@settings(deadline=None)
@given(cells=st.integers(1, 12), size_px=st.integers(1, 64), sigma_px=st.floats(0, 30, allow_subnormal=False))
def test_rows_are_weights(cells: int, size_px: int, sigma_px: float) -> None:
    matrix = smoothing_matrix(cells, size_px, sigma_px, dtype=torch.float64)
    assert matrix.shape == (size_px, cells)
    assert bool((matrix >= 0).all())
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(size_px, dtype=torch.float64))


def test_constant_stays_constant(device: torch.device) -> None:
    make = MapMaker((5, 7), 56, 4.0, device)
    scores = torch.full((2, 5, 7), 3.25).to(device)
    torch.testing.assert_close(make(scores).cpu(), torch.full((2, 56, 56), 3.25))
    valid = torch.zeros(2, 5, 7, dtype=torch.bool)
    valid[:, 1:4] = True
    maps = make(scores, valid.to(device)).cpu()
    inside = maps != 0
    assert inside.float().mean() == pytest.approx(3 / 5, abs=0.02)
    torch.testing.assert_close(maps[inside], torch.full_like(maps[inside], 3.25))


def test_all_valid_is_as_without_a_mask(device: torch.device) -> None:
    make = MapMaker((6, 6), 48, 4.0, device)
    scores = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)
    valid = torch.ones(3, 6, 6, dtype=torch.bool).to(device)
    torch.testing.assert_close(make(scores, valid).cpu(), make(scores).cpu())


@pytest.mark.parametrize("padding", [0.0, 1e6, math.nan, math.inf])
def test_padding_never_influences_the_content(padding: float, device: torch.device) -> None:
    make = MapMaker((8, 8), 64, 4.0, device)
    scores = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(2))
    valid = torch.zeros(1, 8, 8, dtype=torch.bool)
    valid[:, 2:6] = True
    on_device = valid.to(device)
    maps = make(scores.to(device), on_device).cpu()
    other = make(torch.where(valid, scores, padding).to(device), on_device).cpu()
    assert torch.equal(maps, other)
    assert not maps[:, :16].any()
    assert not maps[:, 48:].any()
    inside, patches = maps[:, 16:48], scores[:, 2:6]
    assert patches.min() - 1e-6 <= inside.min()
    assert inside.max() <= patches.max() + 1e-6


def test_normalised_convolution_against_loops(device: torch.device) -> None:
    make = MapMaker((4, 4), 16, 2.0, device)
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(1, 4, 4, generator=generator)
    valid = torch.rand(1, 4, 4, generator=generator) > 0.5
    weights = smoothing_matrix(4, 16, 2.0, dtype=torch.float64).tolist()
    expected = np.zeros((16, 16))
    for row in range(16):
        for column in range(16):
            if not valid[0, row // 4, column // 4]:
                continue
            total = support = 0.0
            for i, j in np.argwhere(valid[0].numpy()):
                weight = weights[row][i] * weights[column][j]
                total += weight * float(scores[0, i, j])
                support += weight
            expected[row, column] = total / support
    maps = make(scores.to(device), valid.to(device)).cpu()
    np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-6)


def test_no_valid_patch_gives_zero(device: torch.device) -> None:
    scores, valid = torch.ones(1, 2, 2).to(device), torch.zeros(1, 2, 2, dtype=torch.bool).to(device)
    assert not MapMaker((2, 2), 8, 4.0, device)(scores, valid).cpu().any()


def test_map_maker_is_a_frozen_value() -> None:
    make = MapMaker((2, 3), 8, 1.0)
    assert make == MapMaker((2, 3), 8, 1.0)
    assert make != MapMaker((2, 3), 8, 2.0)
    assert hash(make) == hash(MapMaker((2, 3), 8, 1.0))
    with pytest.raises(AttributeError):
        make.size_px = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("cells", "size_px", "sigma_px"), [(0, 4, 1.0), (4, 0, 1.0), (4, 4, -1.0), (4, 4, math.nan)]
)
def test_bad_settings_are_refused(cells: int, size_px: int, sigma_px: float) -> None:
    with pytest.raises(SpecError):
        smoothing_matrix(cells, size_px, sigma_px)


@pytest.mark.parametrize(
    ("scores", "valid"),
    [
        (torch.zeros(4, 4), None),
        (torch.zeros(1, 4, 5), None),
        (torch.zeros(1, 4, 4, dtype=torch.float64), None),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)),
        (torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)),
    ],
)
def test_bad_batches_are_refused(scores: torch.Tensor, valid: torch.Tensor | None) -> None:
    with pytest.raises(SpecError):
        MapMaker((4, 4), 8, 1.0)(scores, valid)


@settings(deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    net=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
def test_whole_frame_is_bilinear_resampling(height: int, width: int, net: tuple[int, int], seed: int) -> None:
    anomaly_map = np.random.default_rng(seed).random(net, dtype=np.float32)
    source = to_source(
        anomaly_map, width=width, height=height, scale_x=net[1] / width, scale_y=net[0] / height, **WHOLE
    )
    centres = (
        (np.arange(height) + 0.5) * net[0] / height - 0.5,
        (np.arange(width) + 0.5) * net[1] / width - 0.5,
    )
    expected = ndimage.map_coordinates(
        anomaly_map.astype(np.float64), np.meshgrid(*centres, indexing="ij"), order=1, mode="nearest"
    )
    assert source.dtype == np.float32
    np.testing.assert_allclose(source, expected, atol=1e-5)


def test_the_same_size_is_the_same_map() -> None:
    anomaly_map = np.random.default_rng(4).random((9, 9), dtype=np.float32)
    source = to_source(anomaly_map, width=9, height=9, scale_x=1.0, scale_y=1.0, **WHOLE)
    np.testing.assert_array_equal(source, anomaly_map)


def test_crop_leaves_a_border_that_was_not_inspected() -> None:
    # 512 x 256 resized to 256 x 256, of which the centre 224 x 224 is seen: 16 network pixels are cut.
    anomaly_map = np.random.default_rng(5).random((224, 224), dtype=np.float32)
    source = to_source(
        anomaly_map, width=512, height=256, scale_x=0.5, scale_y=1.0, offset_x=-16.0, offset_y=-16.0
    )
    inside = np.zeros((256, 512), dtype=bool)
    inside[16:240, 32:480] = True
    np.testing.assert_array_equal(np.isnan(source), ~inside)
    np.testing.assert_array_equal(source[16:240, 32], anomaly_map[:, 0])
    np.testing.assert_allclose(
        source[16:240, 33], 0.75 * anomaly_map[:, 0] + 0.25 * anomaly_map[:, 1], atol=1e-6
    )


def test_letterbox_padding_is_never_read() -> None:
    # 100 x 50 in a square of 40: content is rows 10 to 30; here the padding is all NaN.
    anomaly_map = np.full((40, 40), np.nan, dtype=np.float32)
    anomaly_map[10:30] = np.random.default_rng(6).random((20, 40), dtype=np.float32)
    source = to_source(
        anomaly_map, width=100, height=50, scale_x=0.4, scale_y=0.4, offset_x=0.0, offset_y=10.0
    )
    alone = to_source(anomaly_map[10:30], width=100, height=50, scale_x=0.4, scale_y=0.4, **WHOLE)
    np.testing.assert_allclose(source, alone, atol=1e-6)


def test_a_sliver_of_content_still_has_a_value() -> None:
    source = to_source(
        np.ones((8, 8)), width=800, height=10, scale_x=0.01, scale_y=0.01, offset_x=0.0, offset_y=3.9
    )
    np.testing.assert_array_equal(source, np.ones((10, 800)))


def test_a_frame_outside_the_square_is_all_nan() -> None:
    source = to_source(
        np.ones((8, 8)), width=5, height=5, scale_x=1.0, scale_y=1.0, offset_x=8.0, offset_y=-9.0
    )
    assert np.isnan(source).all()


def test_to_source_needs_little_beside_its_result() -> None:
    anomaly_map = np.zeros((64, 64), dtype=np.float32)
    tracemalloc.start()
    try:
        source = to_source(
            anomaly_map, width=3000, height=4000, scale_x=64 / 3000, scale_y=64 / 4000, **WHOLE
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.1 * source.nbytes


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"height": 0},
        {"scale_x": 0.0},
        {"scale_y": -1.0},
        {"scale_x": math.inf},
        {"offset_x": math.nan},
    ],
)
def test_bad_affines_are_refused(change: dict[str, float]) -> None:
    affine: dict[str, Any] = {"width": 4, "height": 4, "scale_x": 1.0, "scale_y": 1.0, **WHOLE, **change}
    with pytest.raises(SpecError):
        to_source(np.zeros((4, 4)), **affine)
    with pytest.raises(SpecError):
        to_source(np.zeros((1, 4, 4)), width=4, height=4, scale_x=1.0, scale_y=1.0, **WHOLE)


@settings(deadline=None)
@given(
    count=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    unseen=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_fused_maps_are_the_mean_of_those_that_looked(
    count: int, shape: tuple[int, int], unseen: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    maps = draw.random((count, *shape), dtype=np.float32)
    maps[draw.random(maps.shape) < unseen] = np.nan
    given_maps = maps.copy()
    fused = fuse_maps(iter(maps))
    assert fused.dtype == np.float32
    for row, column in np.ndindex(shape):
        seen = [float(one) for one in maps[:, row, column] if not math.isnan(one)]
        if seen:
            assert fused[row, column] == pytest.approx(sum(seen) / len(seen), rel=1e-6)
        else:
            assert math.isnan(fused[row, column])
    np.testing.assert_array_equal(maps, given_maps)


def test_maps_of_different_images_are_not_fused() -> None:
    with pytest.raises(SpecError, match=r"\(2, 3\), got \(3, 2\)"):
        fuse_maps([np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)])
    with pytest.raises(SpecError, match="one map, got none"):
        fuse_maps([])
    with pytest.raises(SpecError):
        fuse_maps([np.zeros(3, np.float32)])
