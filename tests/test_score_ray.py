"""Scoring on Ray: the rows of one machine, whatever dies on the way; folders and buckets."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from made_up import Workplace
from s3_server import BUCKET, s3_server

from cfa_index import (
    Event,
    LocalPlace,
    ModelBundle,
    ObjectPlace,
    Place,
    RayCluster,
    StageAdvanced,
    score_folder,
    score_folder_on_ray,
)
from cfa_index.engines.ray_cluster import connected
from cfa_index.errors import DatasetError, EngineError, OutputError, SpecError

ROOT = Path(__file__).parent.parent
IMAGES, IN_A_SHARD = 69, 6
CLUSTER = RayCluster(actors=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A server that speaks S3 and a Ray cluster whose processes know of it; gives the cluster's address."""
    with pytest.MonkeyPatch.context() as patch, s3_server(patch):
        # What the workers import, in whatever way this process has found it.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "tests")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        with connected(CLUSTER, cpus=CLUSTER.actors_cpus, gpus=0):
            import ray

            yield ray.get_runtime_context().gcs_address
        assert _below(os.getpid(), "raylet", within_s=30) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return made_up.built_workplace(tmp_path_factory.mktemp("place"), train=12)


@pytest.fixture(scope="module")
def bundle(place: Workplace) -> ModelBundle:
    return ModelBundle.load(place.models / "weave")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images and one broken in each way that an object in a bucket can be, too."""
    folder = made_up.write_good(tmp_path_factory.mktemp("night"), IMAGES)
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "sub").mkdir()
    (folder / "sub" / "=words.png").write_bytes(b"this is no image")
    return folder


@pytest.fixture(scope="module")
def expected(bundle: ModelBundle, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The rows that one machine gives."""
    target = tmp_path_factory.mktemp("expected") / "out"
    report = score_folder(bundle, folder, target, shard_images=IN_A_SHARD)
    assert (report.images, report.rejected) == (IMAGES + 3, 3)
    return rows_of(LocalPlace(target))


def rows_of(target: Place) -> list[dict[str, Any]]:
    """All rows in the order of the parts."""
    parts = [target.read(f"parts/{name}") for name in target.names("parts")]
    return [row for part in parts for row in pq.read_table(io.BytesIO(part or b"")).to_pylist()]


def assert_same(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Every image once, with its score; where an image lies is another place's own affair."""
    assert [row["image_id"] for row in rows] == list(range(len(expected)))
    assert [row["uri"] for row in rows] == [row["uri"] for row in expected]
    for name in ("is_anomalous", "width", "height", "model_sha"):
        assert [row[name] for row in rows] == [row[name] for row in expected], name
    assert [row["error"] is None for row in rows] == [row["error"] is None for row in expected]
    got, wanted = (np.array([row["score"] or 0.0 for row in some]) for some in (rows, expected))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def when(advanced: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that acts once, when so many images have been scored."""
    seen = 0

    def listen(event: Event) -> None:
        nonlocal seen
        if isinstance(event, StageAdvanced) and event.stage == "score":
            before, seen = seen, seen + event.steps
            if before < advanced <= seen:
                act()

    return listen


def test_a_bucket_is_scored_though_an_actor_is_killed(
    cluster: str, bundle: ModelBundle, folder: Path, expected: Any
) -> None:
    source, target = ObjectPlace(f"s3://{BUCKET}/night"), ObjectPlace(f"s3://{BUCKET}/out")
    for path in sorted(folder.rglob("*.png")):
        source.write(path.relative_to(folder).as_posix(), path.read_bytes())
    there: list[int] = []

    def kill() -> None:
        actors = _below(os.getpid(), "MapWorker(Map(_Actor))")
        there.append(len(target.names("parts")))
        os.kill(actors[0], signal.SIGKILL)

    report = score_folder_on_ray(
        bundle,
        source.uri,
        target.uri,
        cluster=CLUSTER,
        shard_images=IN_A_SHARD,
        listener=when(1, kill),
    )
    assert there[0] < len(target.names("parts"))
    assert (report.images, report.rejected, report.resumed, report.stopped) == (IMAGES + 3, 3, 0, False)
    assert_same(rows_of(target), expected)
    csv = target.read("scores.csv")
    assert csv is not None
    assert csv.count(b"\r\n") == 1 + IMAGES + 3
    assert target.names("checkpoint") == []
    again = score_folder_on_ray(bundle, source.uri, target.uri, cluster=CLUSTER, shard_images=IN_A_SHARD)
    assert (again.resumed, again.rejected) == (IMAGES + 3, 3)


def test_a_driver_is_killed_and_run_again(
    cluster: str, bundle: ModelBundle, folder: Path, expected: Any, place: Workplace, tmp_path: Path
) -> None:
    target = LocalPlace(tmp_path / "o u#t%20é")
    code = (
        "import sys; from cfa_index import ModelBundle, RayCluster, score_folder_on_ray\n"
        "model, folder, output, address, n = sys.argv[1:]\n"
        "bundle, cluster = ModelBundle.load(model), RayCluster(address=address)\n"
        "score_folder_on_ray(bundle, folder, output, cluster=cluster, shard_images=int(n))"
    )
    arguments = [place.models / "weave", folder, target.root, cluster, IN_A_SHARD]
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    driver = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 300
        while not target.names("parts") and time.monotonic() < until:
            assert driver.poll() is None, "it has ended"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    left = len(target.names("parts"))
    assert 0 < left < len(expected) / IN_A_SHARD
    report = score_folder_on_ray(bundle, folder, target.root, cluster=CLUSTER, shard_images=IN_A_SHARD)
    assert report.resumed >= left  # a shard that was under way may have come after we looked
    assert_same(rows_of(target), expected)
    assert made_up.leftovers(target.root) == []


def test_it_stops_when_asked_and_one_machine_goes_on(
    cluster: str, bundle: ModelBundle, folder: Path, expected: Any, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    asked: list[bool] = []
    stopped = score_folder_on_ray(
        bundle,
        folder,
        target,
        cluster=CLUSTER,
        shard_images=1,  # so many that they cannot all be done before the first is heard of
        stop=lambda: bool(asked),
        listener=when(1, lambda: asked.append(True)),
    )
    assert stopped.stopped
    assert 0 < stopped.images < IMAGES
    report = score_folder(bundle, folder, target, shard_images=1)
    assert report.resumed >= stopped.images
    assert_same(rows_of(LocalPlace(target)), expected)


@pytest.mark.slow
def test_maps_heatmaps_and_errors_again_where_one_machine_has_begun(
    cluster: str, bundle: ModelBundle, folder: Path, tmp_path: Path
) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for name in ("000.png", "001.png", "002.png", "003.png", "cut.png"):
        (some / name).write_bytes((folder / name).read_bytes())
    ray, local = tmp_path / "ray", tmp_path / "local"
    score_folder(bundle, some, local, heatmaps=True, maps=True, shard_images=2)
    shutil.copytree(local, ray)
    for part in (local, ray):  # and a shard that is to be done from the start
        (part / "parts" / "part-00000000.parquet").unlink()
        (part / "maps" / "c" / "0" / "0" / "0").unlink()
    made_up.write_image(some / "cut.png", made_up.texture(9))
    reports = [
        score_folder_on_ray(
            *(bundle, some, ray),
            cluster=CLUSTER,
            heatmaps=True,
            maps=True,
            shard_images=2,
            retry_errors=True,
        ),
        score_folder(bundle, some, local, heatmaps=True, maps=True, shard_images=2, retry_errors=True),
    ]
    assert [(report.images, report.resumed, report.rejected) for report in reports] == [(5, 2, 0)] * 2
    files, same = made_up.tree(ray), made_up.tree(local)
    assert files.keys() == same.keys()
    assert len([name for name in files if name.startswith("heatmaps/")]) == 5
    assert_same(rows_of(LocalPlace(ray)), rows_of(LocalPlace(local)))
    maps = [zarr.open_array(target / "maps", mode="r")[:] for target in (ray, local)]
    np.testing.assert_allclose(np.asarray(maps[0]), np.asarray(maps[1]), rtol=1e-5, atol=1e-6)


def test_what_is_refused(cluster: str, bundle: ModelBundle, folder: Path, tmp_path: Path) -> None:
    targets = (tmp_path / f"out-{number}" for number in range(9))

    def score(output: Path | str | None = None, source: Path | str = folder, **cluster: Any) -> None:
        output = next(targets) if output is None else output
        score_folder_on_ray(bundle, source, output, cluster=RayCluster(**cluster))

    with pytest.raises(SpecError, match="got 0 actors"):
        score(actors=0)
    with pytest.raises(EngineError, match=r"expected a Ray cluster with \d+ CPUs and 0 GPUs, got \d+ and 0"):
        score(actors=500)
    with pytest.raises(EngineError, match="and 2 GPUs, got"):
        score(gpus_per_actor=2)
    with pytest.raises(DatasetError, match="got NoSuchBucket"):
        score(tmp_path / "other", source="s3://nowhere/x")
    with pytest.raises(OutputError, match="got NoSuchBucket"):
        score("s3://nowhere/x")


def test_what_fails_in_another_process_is_one_line(
    cluster: str, bundle: ModelBundle, folder: Path, tmp_path: Path
) -> None:
    class Elsewhere(ModelBundle):
        """A model that is not there on the other machines."""

        def __init__(self) -> None:
            self.__dict__.update(bundle.__dict__)
            self.path = tmp_path / "gone"

    with pytest.raises(Exception, match=r"expected .*gone") as caught:
        score_folder_on_ray(Elsewhere(), folder, tmp_path / "out", cluster=CLUSTER)
    assert "\n" not in str(caught.value)


def test_paths_are_sent_as_a_process_elsewhere_understands_them(
    bundle: ModelBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a cluster that is there have a working directory of their own."""
    sent: dict[str, Any] = {}

    def kept(pieces: int, **options: Any) -> bool:
        sent.update(options)
        return False

    monkeypatch.setattr("cfa_index.workflows.score_ray.run_on_ray", kept)
    monkeypatch.chdir(tmp_path)
    score_folder_on_ray(bundle, Path(os.path.relpath(folder)), "out", cluster=CLUSTER, heatmaps=True)
    heatmaps = sent["save"].heatmaps
    for one in (sent["fetch"].source, sent["fetch"].target, sent["save"].target, heatmaps.source):
        assert one.root.is_absolute()
    assert sent["make_worker"].path.is_absolute()


def test_without_the_extra(
    bundle: ModelBundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'cfa-index\[ray\]'"):
        score_folder_on_ray(bundle, folder, tmp_path / "out", cluster=CLUSTER)


def _below(ancestor: int, words: str, *, within_s: float = 0.0) -> list[int]:
    """Processes below one whose command line has the words; waits for them to go, where that is asked for."""
    until = time.monotonic() + within_s
    while True:
        parents: dict[int, int] = {}
        named: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(process.name)] = int(fields[1])
            if words.encode() in command and fields[0] != "Z":
                named.append(int(process.name))
        found = [number for number in named if ancestor in _ancestors(number, parents)]
        if not found or time.monotonic() >= until:
            return found
        time.sleep(0.1)


def _ancestors(number: int, parents: dict[int, int]) -> set[int]:
    found = set()
    while (number := parents.get(number, 0)) > 1:
        found.add(number)
    return found
