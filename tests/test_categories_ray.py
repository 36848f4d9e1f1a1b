"""`build` and `train` of several categories at a time: what one after the other makes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
from made_up import ONE_THREAD, QUICK, Workplace, cfa

from cfa_index import RayCluster, current_generation
from cfa_index.engines.ray_cluster import connected

ROOT = Path(__file__).parent.parent
NAMES = ("knit", "twill", "weave")
RAY = ("--engine", "ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster whose processes import what this one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "cli")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        with connected(RayCluster(), cpus=2, gpus=0):
            yield


def places(root: Path) -> tuple[Workplace, Workplace]:
    """The same three categories twice; `twill` has no image that can be read."""
    data = root / "data"
    for number, name in enumerate(NAMES):
        made_up.write_good(data / name / "train" / "good", 8, first=100 * number)
    for image in (data / "twill" / "train" / "good").iterdir():
        image.write_bytes(b"this is no image")
    one, other = Workplace(root=root / "one"), Workplace(root=root / "other")
    for place in (one, other):
        place.root.mkdir()
        place.data.symlink_to(data)
    return one, other


def vectors(place: Workplace, name: str) -> Any:
    return np.load(current_generation(place.models / name) / "vectors.npy")


def test_ray_builds_and_trains_what_one_after_the_other_does(cluster: None, tmp_path: Path) -> None:
    one, other = places(tmp_path)
    built = [
        cfa("build", "-c", "all", *place.everything, *QUICK, "--json", "-", *more)
        for place, more in ((one, ()), (other, RAY))
    ]
    trained = [
        cfa("train", "-c", "all", *place.stores, "--epochs", 1, "--json", "-", *more)
        for place, more in ((one, ()), (other, RAY))
    ]
    for local, ray in (built, trained):
        assert [done["category"] for done in ray.document["categories"]] == ["knit", "weave"]
        assert plain(ray.document) == plain(local.document)
    assert [outcome.code for outcome in built] == [1, 1]
    for outcome in built:
        assert "Traceback" not in outcome.err
        assert outcome.err.count("cfa-index: expected ") == 1, outcome.err
        assert "twill" in outcome.err
    assert [outcome.code for outcome in trained] == [0, 0]
    for name in ("knit", "weave"):
        assert (other.models / name / "generations" / "0002").is_dir()
        np.testing.assert_allclose(vectors(other, name), vectors(one, name), rtol=1e-5)
    assert not (other.models / "twill" / "current").exists()


def plain(document: Any) -> Any:
    """A document without what differs from run to run: paths and seconds, and float32's last digits."""
    if isinstance(document, dict):
        left = {name: value for name, value in document.items() if name not in ("path", "store", "seconds")}
        return {name: plain(value) for name, value in left.items()}
    if isinstance(document, list):
        return [plain(value) for value in document]
    return float(f"{document:.4g}") if isinstance(document, float) else document


def test_one_category_needs_no_ray(tmp_path: Path) -> None:
    one, _ = places(tmp_path)
    env = {**ONE_THREAD, "RAY_ADDRESS": "127.0.0.1:9"}
    assert cfa("build", "-c", "weave", *one.everything, *QUICK, *RAY, env=env).code == 0


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    one, _ = places(tmp_path)
    outcome = cfa("build", "-c", "all", *one.everything, *QUICK, *RAY)
    assert "pip install 'cfa-index[ray]'" in outcome.error_line
