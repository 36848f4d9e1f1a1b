"""Indexes whose lists do not fit their budget: put together on disk, the same candidates, safe to read."""

from __future__ import annotations

import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vectors import clustered

from cfa_index.bank import LISTS_FILE, MemoryBank, SearchIndex, build_faiss, builder, make_index, read_faiss
from cfa_index.bank.builder import lists_on_disk
from cfa_index.bank.index import changed_faiss
from cfa_index.bank.named_files import named_files
from cfa_index.errors import BankError, OutputError
from cfa_index.specs import IndexSpec

CPU = torch.device("cpu")
XB, XQ = clustered(4000, 24, seed=1), clustered(200, 24, seed=2)
BUDGET = 15_000
FACTORIES = ["IVF32,Flat", "IVF32,SQ8", "PCA12,IVF16,SQ8", "IVF16,PQ6np"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_shards_on_disk_find_what_one_index_in_memory_finds(factory: str, tmp_path: Path) -> None:
    steps: list[int] = []
    whole = build_faiss(XB, factory, seed=0)
    built = build_faiss(XB, factory, seed=0, budget_bytes=BUDGET, scratch_dir=tmp_path, advance=steps.append)
    assert whole.lists is None
    assert built.lists is not None
    assert sum(steps) == len(XB)
    assert len(steps) >= 3
    assert [path.name for path in built.lists.parent.iterdir()] == [LISTS_FILE]
    for index in (whole.index, built.index):
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", 4)
    np.testing.assert_array_equal(whole.index.search(XQ, 10)[1], built.index.search(XQ, 10)[1])


def test_a_mapped_file_is_not_needed_whole(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", XB)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="c")
    choice = make_index(
        mapped,
        IndexSpec(factory="IVF32,SQ8", min_recall=0.9),
        XQ,
        k=3,
        patches_per_image=64,
        seed=0,
        budget_bytes=BUDGET,
        scratch_dir=tmp_path,
    )
    bank = MemoryBank(mapped, CPU, choice.index)
    assert np.shares_memory(bank.tensor.numpy(), mapped)
    found = bank.search(torch.from_numpy(XQ), 3)
    flat = MemoryBank(XB, CPU).search(torch.from_numpy(XQ), 3, exact=True)
    assert (found.ids[:, 0] == flat.ids[:, 0]).float().mean() > 0.85
    same = found.ids == flat.ids
    assert torch.equal(found.sq_distances[same], flat.sq_distances[same])


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, SearchIndex]:
    """An index with its lists on disk, as a generation holds it; its scratch folder is gone."""
    index = make_index(
        XB,
        IndexSpec(factory="IVF32,SQ8", min_recall=0.9),
        XQ,
        k=3,
        patches_per_image=64,
        seed=0,
        budget_bytes=BUDGET,
        scratch_dir=tmp_path,
    ).index
    assert index is not None
    assert index.lists is not None
    folder = tmp_path / "generation"
    folder.mkdir()
    index.write(folder / "index.faiss")
    shutil.copyfile(index.lists, folder / LISTS_FILE)
    return folder, index


def test_it_is_the_same_after_writing_and_reading(written: tuple[Path, SearchIndex]) -> None:
    folder, index = written
    again = read_faiss(folder / "index.faiss", index.state, XB.shape)
    assert again.lists == folder / LISTS_FILE
    bank = MemoryBank(XB, CPU)
    queries = torch.from_numpy(XQ)
    before = bank.with_index(index).search(queries, 3)
    after = bank.with_index(again).search(queries, 3)
    assert torch.equal(before.ids, after.ids)
    again.write(folder / "copy.faiss")
    assert (folder / "copy.faiss").read_bytes() == (folder / "index.faiss").read_bytes()


def test_the_folder_where_it_was_built_is_not_in_its_file(written: tuple[Path, SearchIndex]) -> None:
    folder, index = written
    assert index.lists is not None
    assert index.lists.parent.name.encode() not in (folder / "index.faiss").read_bytes()


@pytest.mark.parametrize(
    "name", ["", "/etc/hostname", "other.ivfdata", "../index.ivfdata/../secret", "vectors.npy"]
)
def test_a_path_inside_an_index_is_never_followed(written: tuple[Path, SearchIndex], name: str) -> None:
    folder, index = written
    (folder / "other.ivfdata").write_bytes((folder / LISTS_FILE).read_bytes())
    (folder / "vectors.npy").write_bytes((folder / LISTS_FILE).read_bytes())
    lists = lists_on_disk(index.faiss_index)
    kept, lists.filename = lists.filename, name
    faiss.write_index(index.faiss_index, str(folder / "index.faiss"))
    lists.filename = kept
    with pytest.raises(BankError, match="--rebuild-index"):
        changed_faiss(folder / "index.faiss", index.state, XB, kept=0, seed=0)
    with pytest.raises(BankError, match="--rebuild-index"):
        read_faiss(folder / "index.faiss", index.state, XB.shape)


def test_a_path_in_what_is_nested_in_an_index_is_not_followed_either(
    written: tuple[Path, SearchIndex], tmp_path: Path
) -> None:
    """FAISS reads the quantizer of an IVF without the flags of its caller, and would map what it names."""
    folder, index = written
    target = tmp_path / "nested.bin"
    target.write_bytes((folder / LISTS_FILE).read_bytes())
    inner = index.faiss_index
    outer = faiss.IndexIVFFlat(inner, inner.d, inner.ntotal)
    outer.own_fields, outer.is_trained = False, True
    lists = lists_on_disk(inner)
    kept = lists.filename
    for name in (str(target), LISTS_FILE):
        lists.filename = name
        faiss.write_index(outer, str(folder / "index.faiss"))
        lists.filename = kept
        assert named_files(folder / "index.faiss") == [name]
        with pytest.raises(BankError, match="--rebuild-index"):
            read_faiss(folder / "index.faiss", index.state, (0, inner.d))
        with pytest.raises(BankError, match="--rebuild-index"):
            changed_faiss(folder / "index.faiss", index.state, XB[:0], kept=0, seed=0)
    if Path("/proc/self/maps").exists():
        assert target.name not in Path("/proc/self/maps").read_text()


def test_names_are_read_off_the_bytes(written: tuple[Path, SearchIndex]) -> None:
    folder, _ = written
    path = folder / "index.faiss"
    content = path.read_bytes()
    assert named_files(path) == [LISTS_FILE]
    path.write_bytes(content + b"ilod" + b"\xff" * 40 + b"ilod")  # codes that look like the mark
    assert named_files(path) == [LISTS_FILE]
    path.write_bytes(content[:-20])  # cut off within the name, where FAISS stops, too
    assert named_files(path) == []
    path.write_bytes(b"")
    assert named_files(path) == []
    with pytest.raises(BankError, match="a FAISS index"):
        read_faiss(path, written[1].state, XB.shape)


def test_the_training_sample_keeps_to_the_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builder, "_TRAINING_ROWS", 100)
    monkeypatch.setattr(builder, "_BLOCK_BYTES", 24 * 4 * 500)
    drawn: list[int] = []
    sample = builder._sample

    def watched(vectors: NDArray[np.float32], rows: int, seed: int) -> NDArray[np.float32]:
        drawn.append(rows)
        return sample(vectors, rows, seed)

    monkeypatch.setattr(builder, "_sample", watched)
    steps: list[int] = []
    for budget_bytes in (24 * 4 * 1000, 24 * 4 * 10):
        build_faiss(
            XB, "IVF32,Flat", seed=0, budget_bytes=budget_bytes, scratch_dir=tmp_path, advance=steps.append
        )
    assert drawn == [1000, 100]
    assert max(steps) == 500


def test_a_change_of_the_vectors_builds_it_again(written: tuple[Path, SearchIndex]) -> None:
    folder, index = written
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = changed_faiss(folder / "index.faiss", index.state, XB[:1000], kept=0, seed=0)
    assert changed.count == 1000
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("broken")])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException] | BaseException) -> None:
    seen = 0

    def stop(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen > 2000:
            raise error

    with pytest.raises((KeyboardInterrupt, BankError)):
        build_faiss(XB, "IVF32,SQ8", seed=0, budget_bytes=BUDGET, scratch_dir=tmp_path, advance=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="to write"):
        build_faiss(XB, "IVF32,SQ8", seed=0, budget_bytes=BUDGET, scratch_dir=tmp_path / "no" / "such")


def test_a_disk_that_is_full_is_not_the_indexs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("Error in void f() at /faiss/io.cpp:6: Error: 'n' failed: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(OutputError, match="got 'n' failed: No space left on device; free"):
        build_faiss(XB, "IVF32,SQ8", seed=0, budget_bytes=BUDGET, scratch_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_faiss_is_quoted_without_its_place_in_cpp() -> None:
    with pytest.raises(BankError) as caught:
        build_faiss(XB[:10], "PCA20,Flat", seed=0)
    assert "PCA matrix cannot output 20 dimensions" in caught.value.got
    assert ".cpp" not in caught.value.got


@pytest.mark.parametrize("factory", FACTORIES)
def test_lists_within_the_index_are_mapped_from_its_file(factory: str, tmp_path: Path) -> None:
    choice = make_index(XB, IndexSpec(factory=factory, min_recall=0.5), XQ, k=3, patches_per_image=64, seed=0)
    assert choice.index is not None
    assert choice.index.lists is None
    choice.index.write(tmp_path / "index.faiss")
    again = read_faiss(tmp_path / "index.faiss", choice.state, XB.shape)
    assert again.lists is None
    assert lists_on_disk(again.faiss_index) is not None
    bank, queries = MemoryBank(XB, CPU), torch.from_numpy(XQ)
    before, after = (bank.with_index(index).search(queries, 3) for index in (choice.index, again))
    assert torch.equal(before.ids, after.ids)
    changed = changed_faiss(tmp_path / "index.faiss", choice.state, XB[:1000], kept=0, seed=0)
    assert (changed.count, changed.lists) == (1000, None)
