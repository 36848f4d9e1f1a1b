"""The parts of benchmarks.peers that need no peer, and the graphs where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vectors import clustered

from benchmarks.peers import (
    PEERS,
    Contender,
    K,
    Row,
    Truth,
    brute_sklearn,
    brute_torch,
    contenders,
    elsewhere,
    graph_hnswlib,
    graph_usearch,
    ours,
    table,
)
from benchmarks.search_cases import SearchCase

CASE = SearchCase(
    vectors=clustered(1000, 16, seed=1),
    tuning=clustered(200, 16, seed=2),
    good=clustered(200, 16, seed=3),
    defective=3 * clustered(50, 16, seed=4),
    patches_per_image=64,
)


def brute(xq: np.ndarray) -> np.ndarray:
    full = ((xq[:, None].astype(float) - CASE.vectors[None].astype(float)) ** 2).sum(-1)
    return np.argsort(full, axis=1)[:, :K]


def test_recall_is_told_by_distances() -> None:
    truth = Truth(CASE, CASE.good)
    ids = brute(CASE.good)
    assert truth.recall(ids) == 1
    ids[:50] = np.argmax(((CASE.good[:50, None] - CASE.vectors[None]) ** 2).sum(-1), axis=1)[:, None]
    assert truth.recall(ids) == pytest.approx(0.75)


@pytest.mark.parametrize("make", [brute_torch, brute_sklearn, lambda case: ours(case, "flat", 0)])
def test_brute_force_finds_all(make: Callable[[SearchCase], Contender]) -> None:
    np.testing.assert_array_equal(make(CASE).search(CASE.good)[:, 0], brute(CASE.good)[:, 0])


def test_graphs_are_tuned(tmp_path: Path) -> None:
    truth = Truth(CASE, CASE.good)
    pytest.importorskip("hnswlib")
    found = graph_hnswlib(CASE, tmp_path, 1, 0)
    assert truth.recall(found.search(CASE.good)) > 0.95
    assert found.bytes is not None
    assert found.bytes > CASE.vectors.nbytes
    pytest.importorskip("usearch")
    assert truth.recall(graph_usearch(CASE, 1).search(CASE.good)) > 0.95


def test_a_peer_that_is_not_installed_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hnswlib", None)
    names = [one.name for one in contenders(CASE, ["torch", "hnswlib"], tmp_path, 1, 0)]
    assert any(name.startswith("torch") for name in names)
    assert "hnswlib: not installed; pip install" in capsys.readouterr().out


def test_an_environment_without_the_peer_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    np.save(tmp_path / "bank.npy", CASE.vectors)
    np.save(tmp_path / "image.npy", CASE.good[:64])
    assert list(elsewhere("autofaiss", Path(sys.executable), tmp_path, 1, 1)) == []
    assert "autofaiss: ModuleNotFoundError" in capsys.readouterr().out


def test_the_table_has_a_line_each() -> None:
    row = Row(
        name="x",
        times_flat=2.0,
        image_ms=1.0,
        build_s=0.1,
        mib=None,
        recall_good=1.0,
        recall_defective=None,
    )
    assert table([row, row]).count("| x | 2.00 | 1.0 | 0.1 | - | 1.0000 | - |") == 2
    assert len(PEERS) == 6
