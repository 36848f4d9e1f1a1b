from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, strategies as st

from cfa_index.errors import StoreError
from cfa_index.pyramid import patches
from cfa_index.specs import FeatureSpec
from cfa_index.store import SHARD_IMAGES, PatchStore, StoredImage, StoreHeader, StoreWriter, plan_shards
from cfa_index.workflows.extract import store_path

HEADER = StoreHeader(
    source="/data/cable",
    features=FeatureSpec(backbone="resnet18", strides=(8, 16), size_px=64),
    weights_sha256="w" * 64,
    channels=(5, 7),
)


def image(number: int, **changes: object) -> StoredImage:
    base = StoredImage(
        uri=f"train/good/{number:03d} ü'.png",
        size=10,
        mtime_ns=5,
        sha256=f"{number:064d}",
        width=300,
        height=200,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def pyramid(number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(1, 5, 8, 8, generator=generator), torch.randn(1, 7, 4, 4, generator=generator)]


def fill(writer: StoreWriter, images: list[StoredImage], shards: list[int] | None = None) -> None:
    for shard in writer.todo if shards is None else shards:
        rows = writer.shard_rows(shard)
        levels = [torch.cat(level) for level in zip(*(pyramid(row) for row in rows), strict=True)]
        writer.write_shard(shard, levels, [images[row] for row in rows])


def make(path: Path, count: int = 40) -> PatchStore:
    images = [image(number) for number in range(count)]
    with StoreWriter(path, HEADER, images) as writer:
        fill(writer, images)
        return writer.finish()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr")
    rows = [39, 0, 1, 2, 17, 16, 39]
    levels = store.read(rows)
    assert [tuple(level.shape) for level in levels] == [(7, 5, 8, 8), (7, 7, 4, 4)]
    for slot, row in enumerate(rows):
        for level, expected in zip(levels, pyramid(row), strict=True):
            assert torch.equal(level[slot], expected[0].half())
    assert store.images[39] == image(39)
    assert store.good_rows == list(range(40))


def test_moments_are_those_of_the_upsampled_patches(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", 20)
    result = store.moments([1, 4, 19], cells_of=lambda _: np.arange(64), patches_per_image=64)
    everything = torch.cat(
        [patches([level.half() for level in pyramid(row)])[0] for row in (1, 4, 19)]
    ).double()
    np.testing.assert_allclose(result.mean, everything.mean(0).numpy(), atol=1e-5)
    np.testing.assert_allclose(result.covariance, np.cov(everything.numpy().T, bias=True), atol=1e-5)


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    with StoreWriter(tmp_path / "s.zarr", HEADER, [image(number) for number in range(40)]) as writer:
        assert writer.todo == []
        assert (tmp_path / "s.zarr" / "store.json").exists()


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    images = [image(number) for number in range(40)]
    with StoreWriter(path, HEADER, images) as writer:
        fill(writer, images, [0, 1])
    with pytest.raises(StoreError, match="finished PatchStore"):
        PatchStore.open(path)
    with StoreWriter(path, HEADER, images) as writer:
        assert writer.todo == [2]
        fill(writer, images)
        store = writer.finish()
    assert torch.equal(store.read([39])[1][0], pyramid(39)[1][0].half())


def test_a_killed_writer_leaves_a_store_that_resumes(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "import test_store as t; from pathlib import Path\n"
        "images = [t.image(n) for n in range(40)]\n"
        "w = t.StoreWriter(Path(sys.argv[1]), t.HEADER, images)\n"
        "t.fill(w, images, [0]); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "s.zarr"
    done = subprocess.run([sys.executable, "-c", script, str(path), str(Path(__file__).parent)], check=False)
    assert done.returncode == -9
    images = [image(number) for number in range(40)]
    with StoreWriter(path, HEADER, images) as writer:  # the dead process's lock is gone
        assert writer.todo == [1, 2]


@pytest.mark.parametrize(
    ("change", "todo"),
    [
        (lambda images: [*images, image(40)], [2]),
        (lambda images: images[:-1], [2]),
        (lambda images: [image(0, sha256="f" * 64), *images[1:]], [0]),
        (lambda images: images[1:], [0, 1, 2]),
        (lambda images: [image(0, mtime_ns=99), *images[1:]], []),
    ],
)
def test_changed_new_and_removed_images_are_noticed(tmp_path: Path, change: object, todo: list[int]) -> None:
    make(tmp_path / "s.zarr")
    images = change([image(number) for number in range(40)])  # type: ignore[operator]
    with StoreWriter(tmp_path / "s.zarr", HEADER, images) as writer:
        assert writer.todo == todo
        fill(writer, images)
        store = writer.finish()
    assert [one.uri for one in store.images] == [one.uri for one in images]


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    images = [image(0)]
    with StoreWriter(tmp_path / "s.zarr", HEADER, images), pytest.raises(StoreError, match="only writer"):
        StoreWriter(tmp_path / "s.zarr", HEADER, images)


def test_broken_images_keep_their_row_and_are_not_good(tmp_path: Path) -> None:
    images = [image(0), image(1, error="cut short")]
    with StoreWriter(tmp_path / "s.zarr", HEADER, images) as writer:
        fill(writer, images)
        store = writer.finish()
    assert store.good_rows == [0]


def test_features_that_overflow_are_an_error(tmp_path: Path) -> None:
    images = [image(0)]
    with (
        StoreWriter(tmp_path / "s.zarr", HEADER, images) as writer,
        pytest.raises(StoreError, match="float16"),
    ):
        writer.write_shard(0, [torch.full((1, 5, 8, 8), 1e9), torch.zeros(1, 7, 4, 4)], images)


def shard_file(path: Path) -> Path:
    return path / "level8" / "c" / "1" / "0" / "0"


def test_a_missing_shard_is_an_error_not_zeros(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    shard_file(tmp_path / "s.zarr").unlink()
    with pytest.raises(StoreError, match="got no file"):
        PatchStore.open(tmp_path / "s.zarr")


def test_a_truncated_shard_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    os.truncate(shard_file(tmp_path / "s.zarr"), 100)
    with pytest.raises(StoreError, match="100 instead of"):
        PatchStore.open(tmp_path / "s.zarr")


def test_a_flipped_byte_in_a_shard_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    file = shard_file(tmp_path / "s.zarr")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    store = PatchStore.open(tmp_path / "s.zarr")
    store.read([0, 39])
    with pytest.raises(StoreError, match="differ from what was written"):
        store.read([16])


def test_a_store_that_is_filled_again_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr")
    store.read([0])
    images = [image(100), *(image(number) for number in range(40))]
    with StoreWriter(tmp_path / "s.zarr", HEADER, images) as writer:
        for shard in writer.todo:
            rows = writer.shard_rows(shard)
            levels = [torch.cat(level) for level in zip(*(pyramid(row + 7) for row in rows), strict=True)]
            writer.write_shard(shard, levels, [images[row] for row in rows])
        writer.finish()
    with pytest.raises(StoreError, match="when this store was opened"):
        store.read([0])


def test_damaged_array_metadata_is_written_again(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "level8" / "zarr.json").write_text("{")
    images = [image(number) for number in range(40)]
    with StoreWriter(tmp_path / "s.zarr", HEADER, images) as writer:
        assert writer.todo == []
        store = writer.finish()
    assert torch.equal(store.read([39])[0][0], pyramid(39)[0][0].half())


@pytest.mark.parametrize("name", ["store.json", "images.parquet", "level8/zarr.json"])
def test_a_flipped_byte_in_any_other_file_is_noticed(tmp_path: Path, name: str) -> None:
    make(tmp_path / "s.zarr")
    file = tmp_path / "s.zarr" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError):
        PatchStore.open(tmp_path / "s.zarr")


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    file = tmp_path / "s.zarr" / "store.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    with pytest.raises(StoreError, match="schema version 2 or older, got 99"):
        PatchStore.open(tmp_path / "s.zarr")


def test_a_damaged_record_makes_its_shard_again(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "records" / "00001.json").write_text("{")
    with StoreWriter(tmp_path / "s.zarr", HEADER, [image(number) for number in range(40)]) as writer:
        assert writer.todo == [1]


@given(st.integers(0, 70), st.integers(0, 70), st.sets(st.integers(0, 69)))
def test_plan_writes_exactly_the_shards_that_differ(before: int, after: int, changed: set[int]) -> None:
    old = [image(number) for number in range(before)]
    new = [image(number, sha256="x" * 64) if number in changed else image(number) for number in range(after)]
    recorded = [old[start : start + SHARD_IMAGES] for start in range(0, before, SHARD_IMAGES)]
    todo = set(plan_shards(new, recorded))
    for shard, start in enumerate(range(0, after, SHARD_IMAGES)):
        same = old[start : start + SHARD_IMAGES] == new[start : start + SHARD_IMAGES]
        assert (shard in todo) != same


TILED = replace(HEADER, features=replace(HEADER.features, tile_px=64, overlap_px=16))
TILES = (3, 1, 2, 14)
"""Of four images; the last one lies in two shards."""


def tiles_of(error: str = "") -> list[StoredImage]:
    """The rows of the four images; the error is that of the third."""
    return [
        image(number, tile=tile, error=error if number == 2 else "")
        for number, count in enumerate(TILES)
        for tile in range(count)
    ]


def test_rows_of_tiles_are_found_by_image(tmp_path: Path) -> None:
    rows = tiles_of()
    with StoreWriter(tmp_path / "s.zarr", TILED, rows) as writer:
        assert writer.todo == [0, 1]
        fill(writer, rows)
        store = writer.finish()
    assert store.images == rows
    assert store.images_in([2, 0, 19, 7, 4]) == [0, 6, 4]
    assert store.views_of([6, 3]) == [*range(6, 20), 3]
    assert store.images_in(range(20)) == [0, 3, 4, 6]
    assert store.rejected == 0
    assert torch.equal(store.read([17])[0][0], pyramid(17)[0][0].half())


def test_an_image_of_which_a_tile_is_missing_is_not_good(tmp_path: Path) -> None:
    rows = tiles_of()
    rows[5] = replace(rows[5], error="cut short")
    with StoreWriter(tmp_path / "s.zarr", TILED, rows) as writer:
        fill(writer, rows)
        store = writer.finish()
    assert store.good_rows == [*range(4), *range(6, 20)]
    assert store.rejected == 1


def test_other_tiles_of_the_same_file_are_written_again(tmp_path: Path) -> None:
    rows = tiles_of()
    with StoreWriter(tmp_path / "s.zarr", TILED, rows) as writer:
        fill(writer, rows)
        writer.finish()
    shifted = [image(0, tile=3), *rows[4:]]
    with StoreWriter(tmp_path / "s.zarr", TILED, shifted) as writer:
        assert writer.todo == [0, 1]


V1 = Path(__file__).parent / "fixtures" / "store-v1.zarr"
"""Written before rows could be tiles: three images, of which the second could not be read."""


def test_a_store_of_version_1_is_read() -> None:
    store = PatchStore.open(V1)
    assert json.loads((V1 / "store.json").read_text())["schema_version"] == 1
    assert store.header == HEADER
    assert store.images == [image(0), image(1, error="cut short", width=0, height=0), image(2)]
    assert store.good_rows == [0, 2]
    assert torch.equal(store.read([2])[1][0], pyramid(2)[1][0].half())


def test_a_store_of_version_1_stays_valid_where_nothing_is_cut(tmp_path: Path) -> None:
    """Its name, and its table's bytes, by which models know it, are those that are written today."""
    assert store_path(Path("f"), "cable", HEADER) == Path("f/cable/6afd15cca1b6b9d5.zarr")
    assert store_path(Path("f"), "cable", TILED) != store_path(Path("f"), "cable", HEADER)
    path = tmp_path / "s.zarr"
    shutil.copytree(V1, path)
    with StoreWriter(path, HEADER, PatchStore.open(V1).images) as writer:
        assert writer.todo == []
        writer.finish()
    assert json.loads((path / "store.json").read_text())["schema_version"] == 2
    written, before = (pq.read_table(at / "images.parquet") for at in (path, V1))
    assert written.equals(before)
    assert written.schema.equals(before.schema)
