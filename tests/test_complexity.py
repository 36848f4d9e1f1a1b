from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from streams import random_images, stream_of

from benchmarks.bank_cost import Cell, Method, measure_cell, padim_bytes, padim_gaussian
from benchmarks.complexity import _PAPER, _make_store, _row, exponent, measure_table1, table
from cfa_index.specs import FeatureSpec

ROOT = Path(__file__).parent.parent


def test_padim_s_gaussian_is_mean_and_covariance_at_each_position() -> None:
    data = [image + 100 for image in random_images(7, cells=5, width=8)]
    chosen = np.array([6, 0, 3])
    mean, covariance = padim_gaussian(stream_of(data), chosen)
    every = np.stack(data)[:, :, chosen].astype(float)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-5)
    for position in range(5):
        expected = np.cov(every[:, position], rowvar=False) + 0.01 * np.eye(3)
        np.testing.assert_allclose(covariance[position], expected, rtol=1e-3, atol=1e-4)
    assert mean.nbytes + covariance.nbytes == padim_bytes(5, 3)


def test_the_exponent_is_the_slope_in_log_log() -> None:
    images = (8, 16, 32)
    assert exponent(images, [5e-3 * n**1.5 for n in images]) == pytest.approx(1.5)
    assert exponent(images, [7, 7, 7]) == pytest.approx(0)


def test_every_method_is_measured(tmp_path: Path) -> None:
    """In this process, which is enough to see that each cell runs; peaks are for a fresh one."""
    store = _make_store(
        tmp_path, "made-up", FeatureSpec(backbone="resnet18", strides=(8, 16), size_px=32), 4, 0
    )
    banks = {
        method: measure_cell(method, store, 4, 0.25, 0, 1).bank_bytes
        for method in ("ema", "mean", "kmeans", "coreset", "full", "padim")
    }
    memory = 384 * 4
    assert banks == {
        **dict.fromkeys(("ema", "mean", "kmeans"), 16 * memory),
        "coreset": 16 * memory,
        "full": 64 * memory,
        "padim": padim_bytes(16, 100),
    }


def test_a_row_is_plain_and_its_table_is_markdown() -> None:
    cells = [Cell(seconds=float(n), peak_bytes=n << 20, bank_bytes=1 << 20) for n in (2, 4)]
    row = _row("coreset", "coreset", (2, 4), cells, computed=True)
    assert json.loads(json.dumps(row.to_dict()))["seconds"] == [2.0, 4.0]
    text = table([row])
    assert r"| coreset (computed) | 2 | 4 | 1.00 | PatchCore | O(\|X\|HWD') |" in text
    assert r"| coreset (computed) | 1 | 1 | 0.00 | PatchCore | \|X\|xg(HxW)xD' |" in text


def test_every_method_stands_for_a_system() -> None:
    assert set(_PAPER) == set(get_args(Method))


@pytest.mark.parametrize("images", [(8,), (8, 8), (1, 8), ()])
def test_a_slope_needs_two_numbers_of_images(images: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected two numbers of images or more"):
        measure_table1(images)


@pytest.mark.slow
def test_the_quick_table_runs(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.complexity", "--quick", "--images", "2", "4", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(file.read_text())
    assert [row["method"] for row in rows] == [
        *("ema", "mean", "kmeans", "hybrid", "coreset", "full", "padim-100", "padim-550"),
    ]
    assert [row["computed"] for row in rows] == [False] * 7 + [True]
    assert "machine: " in done.stdout
    assert min(min(row["seconds"]) for row in rows) > 0
