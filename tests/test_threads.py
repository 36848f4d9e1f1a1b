"""Threads: the number asked for is the number used, and a forked child neither hangs nor differs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from made_up import built_workplace

from cfa_index.bank import MemoryBank, kmeans, make_index, nearest_rows, set_threads, shared_threads
from cfa_index.bundle import ModelBundle
from cfa_index.errors import SpecError
from cfa_index.specs import IndexSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # 3.12

_LIMIT_S = 20
XB = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
LARGE = torch.ones(300_000)
XQ = np.random.default_rng(1).normal(size=(200, 16)).astype(np.float32)
CPU = torch.device("cpu")
BANK = MemoryBank(XB, CPU)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Two for both libraries, whatever the environment says, so that there is a pool to lose."""
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(2)
    torch.set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before[0])
    torch.set_num_threads(before[1])


def counts() -> tuple[int, int]:
    """Threads of FAISS, as the calling thread sees them, and of torch."""
    return faiss.omp_get_max_threads(), torch.get_num_threads()


def in_a_child(work: Callable[[], bytes]) -> bytes:
    """What `work` gives in a fork of this process; one that does not end in time is killed and fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(_LIMIT_S)
        try:
            os.write(writer, work())
        finally:
            os._exit(0)  # nothing of pytest's may run twice
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status}; {signal.SIGALRM:d} means that it hung"
    return answer


def bank_search() -> bytes:
    found = BANK.search(torch.from_numpy(XQ), 3, exact=True)
    return found.ids.numpy().tobytes() + found.sq_distances.numpy().tobytes()


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(bank_search, id="search"),
        pytest.param(lambda: nearest_rows(XQ, XB, 3)[1].tobytes(), id="nearest rows"),
        pytest.param(lambda: kmeans(XB, 8, iterations=2, seed=0).tobytes(), id="k-means"),
        pytest.param(
            shared_threads()(lambda: torch.nn.functional.relu(LARGE).sum().numpy().tobytes()), id="torch"
        ),
    ],
)
def test_a_forked_child_does_not_hang_and_finds_the_same(work: Callable[[], bytes]) -> None:
    here = work()  # the parent's pools are running now
    assert in_a_child(work) == here


@pytest.mark.parametrize("factory", ["PCA8,Flat", "IVF8,Flat", "IVF8,PQ8x4fs", "HNSW8"])
def test_a_forked_child_searches_every_kind_of_index(factory: str) -> None:
    choice = make_index(
        XB, IndexSpec(factory=factory, min_recall=0.5), XQ, k=3, patches_per_image=100, seed=0
    )
    bank = MemoryBank(XB, CPU, choice.index)

    def work() -> bytes:
        return bank.search(torch.from_numpy(XQ), 3).ids.numpy().tobytes()

    assert in_a_child(work) == work()


def test_a_forked_child_loads_a_model_and_scores_with_it(tmp_path: Path) -> None:
    place = built_workplace(tmp_path, train=6, test=1)
    images = sorted((place.data / "weave" / "test").rglob("*.png"))
    torch.set_num_threads(2)  # the command has set one
    bundle = ModelBundle.load(place.models / "weave")

    def work() -> bytes:
        again = ModelBundle.load(place.models / "weave")
        scores = [verdict.score for one in (bundle, again) for verdict in one.score(images)]
        return np.array(scores).tobytes()

    assert np.allclose(np.frombuffer(in_a_child(work)), np.frombuffer(work()), rtol=1e-5)


def test_a_forked_child_gets_its_numbers_back_and_forks_again() -> None:
    expected = bank_search()

    def work() -> bytes:
        before = counts()
        bank_search()
        assert counts() == before
        return in_a_child(bank_search)

    assert in_a_child(work) == expected


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)])
def test_a_search_leaves_a_host_s_own_numbers_alone(numbers: tuple[int, int]) -> None:
    torch.set_num_threads(numbers[1])
    faiss.omp_set_num_threads(numbers[0])  # where there is one pool, torch's too
    before = counts()
    bank_search()
    kmeans(XB, 8, iterations=1, seed=0)
    assert counts() == before


def test_an_error_gives_the_numbers_back_too() -> None:
    set_threads(1)
    faiss.omp_set_num_threads(2)
    before = counts()
    with pytest.raises(ZeroDivisionError), shared_threads():
        _ = 1 / 0
    assert counts() == before


def test_a_number_that_is_set_holds_in_every_thread() -> None:
    set_threads(1)
    seen = []

    def work() -> None:
        with shared_threads():
            seen.append(counts())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(1, 1)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how Linux finds symbols")
def test_torch_and_faiss_share_one_pool_when_we_load_them() -> None:
    code = (
        "from cfa_index import MemoryBank; import faiss, torch; before = faiss.omp_get_max_threads(); "
        "torch.set_num_threads(before + 1); print(faiss.omp_get_max_threads() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_every_command_that_takes_a_number_of_threads_sets_it() -> None:
    for file in (Path(__file__).parent.parent / "cli" / "cfa_index_cli" / "commands").glob("*.py"):
        text = file.read_text()
        if "o.Threads" in text and file.stem != "dataset":  # which reads and turns images, no more
            assert "set_threads(threads)" in text, file.name


def test_fewer_than_one_thread_is_refused() -> None:
    with pytest.raises(SpecError, match="1 thread or more"):
        set_threads(0)


def test_threads_that_search_at_once_find_what_one_finds() -> None:
    expected, found = bank_search(), []
    threads = [threading.Thread(target=lambda: found.append(bank_search())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LIMIT_S)
    assert found == [expected] * 4
