"""What this package uses of cuVS and RMM, against the installed wheel: it runs where the extra `cuvs` is.

No card is needed. Tensors that only say they are on one get as far as the driver.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cfa_index.bank import cuvs
from cfa_index.errors import DeviceError

pytest.importorskip("cuvs", reason="the extra cuvs is not installed")


class OnCard(Tensor):
    """A tensor in the host's memory that hands itself over as one on a card."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface: dict[str, Any] = self.detach().as_subclass(Tensor).numpy().__array_interface__
        return {**interface, "version": 2}


def on_card(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(OnCard)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a card: torch's default stream, and RMM's own memory in place of a pool that asks the driver."""
    from rmm.mr import CudaMemoryResource

    plain = CudaMemoryResource()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(cuvs, "_pool", lambda _: plain)
    cuvs._resources.cache_clear()
    yield
    cuvs._resources.cache_clear()


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_it_loads_beside_torch_and_faiss() -> None:
    cuvs.require_cuvs()
    assert cuvs.has_cuvs()


def test_a_graph_is_asked_for_by_names_that_exist() -> None:
    cagra = cuvs._loaded().cagra
    asked = cagra.IndexParams(
        metric="sqeuclidean", intermediate_graph_degree=128, graph_degree=64, build_algo="nn_descent"
    )
    assert (asked.metric, asked.intermediate_graph_degree, asked.graph_degree) == ("sqeuclidean", 128, 64)
    assert asked.build_algo != cagra.IndexParams(build_algo="ivf_pq").build_algo
    assert cagra.SearchParams(itopk_size=96).itopk_size == 96
    assert cagra.SearchParams(itopk_size=96).algo == cagra.SearchParams(algo="auto").algo


def test_functions_take_what_they_are_given() -> None:
    cagra = cuvs._loaded().cagra
    assert parameters(cagra.build) == ["index_params", "dataset", "resources"]
    assert parameters(cagra.from_graph) == ["graph", "dataset", "metric", "resources"]
    assert parameters(cagra.search)[:7] == [
        *("search_params", "index", "queries", "k", "neighbors", "distances", "resources")
    ]


def test_a_search_writes_rows_as_uint32() -> None:
    cagra = cuvs._loaded().cagra
    source = Path(cagra.__file__).with_name("cagra.pyx")
    if not source.exists():
        pytest.skip("this wheel comes without its sources")
    text = "".join(source.read_text().split())
    assert "_check_input_array(neighbors_cai,[np.dtype('uint32')]" in text
    assert "_check_input_array(distances_cai,[np.dtype('float32')]" in text
    assert "_check_input_array(graph_ai,[np.dtype('uint32')])" in text


def test_a_built_graph_has_lists_that_are_copied_to_the_host() -> None:
    from cuvs.common.device_tensor_view import DeviceTensorView

    cagra = cuvs._loaded().cagra
    with pytest.raises(ValueError, match="built before getting graph"):
        _ = cagra.Index().graph
    assert "resources" in parameters(DeviceTensorView.copy_to_host)


def test_resources_are_made_for_a_stream_and_can_be_waited_for() -> None:
    resources = cuvs._loaded().Resources(stream=1)
    assert callable(resources.sync)
    assert resources.get_c_obj() != 0


def test_memory_can_be_chosen_for_a_call() -> None:
    memory = cuvs._loaded().memory
    before = memory.get_per_device_resource(0)
    other = memory.CudaMemoryResource()
    memory.set_per_device_resource(0, other)
    assert memory.get_per_device_resource(0) is other
    memory.set_per_device_resource(0, before)
    assert memory.get_per_device_resource(0) is before
    if not torch.cuda.is_available():  # the arguments are right: what is missing is the driver
        with pytest.raises(RuntimeError, match="not supported"):
            cuvs._pool.__wrapped__(0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="these tensors are on no card")
def test_calls_reach_the_driver_with_the_tensors_as_they_are(streams: None) -> None:
    memory = cuvs._loaded().memory
    before = memory.get_per_device_resource(0)
    rows = on_card(torch.rand(200, 8))
    lists = on_card(torch.zeros(200, 4, dtype=torch.int32))
    with pytest.raises(DeviceError, match="cuVS to build a graph on cpu") as caught:
        cuvs.build_lists(rows, 8)
    assert "driver version is insufficient" in caught.value.got
    with pytest.raises(DeviceError, match="cuVS to take a graph on cpu") as caught:
        cuvs.join_graph(rows, lists)
    assert "driver version is insufficient" in caught.value.got
    assert "\n" not in str(caught.value)
    assert memory.get_per_device_resource(0) is before


@pytest.mark.skipif(torch.cuda.is_available(), reason="these tensors are on no card")
@pytest.mark.parametrize("wrong", [torch.zeros(200, 8, dtype=torch.float64), torch.zeros(8, 200).T])
def test_other_rows_are_refused_before_the_driver(streams: None, wrong: Tensor) -> None:
    with pytest.raises((TypeError, ValueError)):
        cuvs.build_lists(on_card(wrong), 8)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [24, 30])
def test_a_card_finds_nearly_all_of_what_is_nearest(d: int) -> None:
    from vectors import clustered

    from cfa_index.bank import MemoryBank, make_index
    from cfa_index.specs import IndexSpec

    device, host = torch.device("cuda", 0), torch.device("cpu")
    xb, xq = clustered(5000, d, seed=1), torch.from_numpy(clustered(1000, d, seed=3))
    flat = MemoryBank(xb, device)
    spec, queries = IndexSpec(factory="cagra", min_recall=0.95), clustered(400, d, seed=2)
    made = make_index(xb, spec, queries, k=3, patches_per_image=64, seed=0, flat=flat)
    assert made.index is not None
    assert made.state.recall_at_1 > 0.9
    bank = flat.with_index(made.index)
    exact = MemoryBank(xb, host).search(xq, 3, exact=True)
    found = bank.search(xq.to(device), 3, exact=True)
    assert (found.ids.cpu()[:, 0] == exact.ids[:, 0]).float().mean() > 0.9
    on_host = MemoryBank(xb, host, made.index).search(xq, 3, exact=True)
    assert (on_host.ids[:, 0] == exact.ids[:, 0]).float().mean() > 0.9
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        beside = bank.search(xq.to(device), 3, exact=True)
    stream.synchronize()
    np.testing.assert_allclose(beside.sq_distances.cpu(), found.sq_distances.cpu(), rtol=1e-3)
