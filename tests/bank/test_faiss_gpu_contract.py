"""Against the installed faiss-gpu wheel, without a card: what our sources use of it exists, with that signature.

`CARD` is the contract. It is kept from both sides: our sources are parsed for what they use of FAISS's GPU side, all
of which has to be in it, and all that is in it has to be in the wheel, and in use.
"""

from __future__ import annotations

import ast
import inspect
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import pytest
import torch
from faiss_uses import Use, uses_of
from fake_card import FakeFaiss

import cfa_index
from cfa_index.bank import faiss_gpu

BANK = Path(cfa_index.__file__).parent / "bank"
OBJECTS = {
    "faiss_gpu.py:resources": "StandardGpuResources",
    "card_index.py:moved": "GpuIndexIVFFlat",
}
"""What holds an object of FAISS's where it is not assigned one."""
USES = uses_of(BANK, OBJECTS)
ON_CARDS = re.compile(r"gpu|INDICES_|bfKnn|torch_utils|DataType", re.IGNORECASE)
"""Names of FAISS's GPU side."""

CARD = {
    # functions and methods: signature; classes: a constructor's C++ parameters; fields: the default; constants
    "DistanceDataType_F32": "1",
    "GpuClonerOptions": "",
    "GpuClonerOptions.allowCpuCoarseQuantizer": "False",
    "GpuClonerOptions.indicesOptions": "3",
    "GpuClonerOptions.use_cuvs": "False",
    "GpuDistanceParams": "",
    "GpuDistanceParams.device": "-1",
    "GpuDistanceParams.dims": "0",
    "GpuDistanceParams.k": "0",
    "GpuDistanceParams.metric": "1",
    "GpuDistanceParams.numQueries": "0",
    "GpuDistanceParams.numVectors": "0",
    "GpuDistanceParams.outDistances": "None",
    "GpuDistanceParams.outIndices": "None",
    "GpuDistanceParams.outIndicesType": "1",
    "GpuDistanceParams.queries": "None",
    "GpuDistanceParams.queriesRowMajor": "True",
    "GpuDistanceParams.queryType": "1",
    "GpuDistanceParams.use_cuvs": "False",
    "GpuDistanceParams.vectorNorms": "None",
    "GpuDistanceParams.vectorType": "1",
    "GpuDistanceParams.vectors": "None",
    "GpuDistanceParams.vectorsRowMajor": "True",
    "GpuIndexFlatConfig": "",
    "GpuIndexFlatConfig.device": "0",
    "GpuIndexFlatConfig.useFloat16": "False",
    "GpuIndexFlatConfig.use_cuvs": "False",
    "GpuIndexFlatL2": "GpuResourcesProvider *,int,GpuIndexFlatConfig",
    "GpuIndexFlatL2.add_c": "(self, arg2, x)",
    "GpuIndexFlatL2.search": "(self, x, k, D=None, I=None, numeric_type=0)",
    "GpuIndexIVFFlat.nprobe": "size_t",
    "INDICES_64_BIT": "3",
    "IndicesDataType_I64": "1",
    "StandardGpuResources": "",
    "StandardGpuResources.getDefaultStream": "(self, device)",
    "StandardGpuResources.setPinnedMemory": "(self, size)",
    "StandardGpuResources.setTempMemory": "(self, size)",
    "bfKnn": "(resources, args)",
    "contrib.torch_utils": "module",
    "contrib.torch_utils.swig_ptr_from_FloatTensor": "(x)",
    "contrib.torch_utils.swig_ptr_from_IndicesTensor": "(x)",
    "contrib.torch_utils.using_stream": "(res, pytorch_stream=None)",
    "get_num_gpus": "()",
    "index_cpu_to_gpu": "(provider, device, index, options=None)",
}
PLAIN = {"GpuClonerOptions", "GpuDistanceParams", "GpuIndexFlatConfig", "StandardGpuResources"}
"""Classes whose objects take nothing of a card when they are made."""

needs_gpu_build = pytest.mark.skipif(
    "GPU" not in faiss.get_compile_options(), reason="a FAISS without GPU support"
)
no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a card answers")


@pytest.fixture(scope="module", autouse=True)
def tensors_taken() -> None:
    import faiss.contrib.torch_utils  # noqa: F401  (it changes FAISS's classes, for good)


def found(name: str) -> tuple[Any, Any]:
    """A dotted name of FAISS's, and what it is an attribute of."""
    owner, value = None, faiss
    for part in name.split("."):
        owner, value = value, getattr(value, part)
        if isinstance(value, property):  # what is in a field, only an object can tell
            break
    return owner, value


def constructors(kind: Any) -> set[str]:
    """C++ parameters of a class's constructors, from what SWIG says to arguments that fit none."""
    with pytest.raises(TypeError) as refused:
        kind(*[object()] * 9)
    listed = re.findall(rf"::{kind.__name__}\((.*)\)$", str(refused.value), flags=re.MULTILINE)
    return {one.replace("faiss::", "").replace("gpu::", "") for one in listed}


def signature_of(name: str) -> str:
    """How the wheel has it, as `CARD` writes it."""
    owner, value = found(name)
    if isinstance(value, property):
        return repr(getattr(owner(), name.split(".")[-1])) if owner.__name__ in PLAIN else "size_t"
    if inspect.ismodule(value):
        return "module"
    if inspect.isclass(value):
        return "" if name in PLAIN else CARD[name] * (CARD[name] in constructors(value))
    return repr(value) if isinstance(value, int) else str(inspect.signature(value))


def of_module(name: str) -> str:
    """A name up to the class in it: what Python gives an object when it is made, its class does not know."""
    parts = name.split(".")
    kinds = [number for number, part in enumerate(parts) if inspect.isclass(getattr(faiss, part, None))]
    return ".".join(parts[: kinds[0] + 1] if kinds else parts)


def test_sources_are_read_as_they_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "made_up.py").write_text(
        """
import faiss
import faiss.contrib.torch_utils as tensors
from faiss.contrib.torch_utils import using_stream as on

class Card:
    def __init__(self):
        self.resources = faiss.StandardGpuResources()

    def search(self, given):
        config = faiss.GpuIndexFlatConfig()
        config.useFlot16 = True
        self.resources.setTempMemory(1)
        given.nprobe = 3
        with on(self.resources):
            return faiss.knn_gpu(self.resources, k=3), tensors.using_stream
"""
    )
    uses = uses_of(tmp_path, {"made_up.py:given": "GpuIndexIVFFlat"})
    names = [use.name for use in uses]
    assert sorted(names) == [
        *("GpuIndexFlatConfig", "GpuIndexFlatConfig.useFlot16", "GpuIndexIVFFlat.nprobe"),
        *("StandardGpuResources", "StandardGpuResources.setTempMemory", "contrib.torch_utils"),
        *("contrib.torch_utils.using_stream",) * 3,
        "knn_gpu",
    ]
    assert {use.name for use in uses if use.stored} == {
        "GpuIndexFlatConfig.useFlot16",
        "GpuIndexIVFFlat.nprobe",
    }
    with pytest.raises(AttributeError):
        found("GpuIndexFlatConfig.useFlot16")


def on_cards() -> Iterator[Use]:
    return (use for use in USES if ON_CARDS.search(use.name))


@needs_gpu_build
def test_every_name_of_faiss_that_a_source_uses_is_there() -> None:
    """Those of the CPU, too: a release may have renamed them."""
    missing = []
    for use in USES:
        try:
            found(use.name if ON_CARDS.search(use.name) else of_module(use.name))
        except AttributeError as error:
            missing.append(f"{use.where}: {error}")
    assert len(USES) > 100
    assert not missing


@needs_gpu_build
def test_the_contract_is_what_the_sources_use() -> None:
    used = {use.name: use.where for use in on_cards()}
    assert {name: where for name, where in used.items() if name not in CARD} == {}
    assert CARD.keys() - used.keys() == set()


def test_faiss_on_a_card_is_called_in_two_modules() -> None:
    assert {use.where.split(":")[0] for use in on_cards()} == {"faiss_gpu.py", "card_index.py"}


def test_the_fake_takes_what_the_real_one_takes() -> None:
    """A card that is not there answers in the place of these functions (fake_card.py)."""
    real = {name: one for name, one in vars(faiss_gpu).items() if inspect.isfunction(one)}
    assert len(real) > 5
    for name, one in real.items():
        stand_in = list(inspect.signature(getattr(FakeFaiss, name)).parameters)
        assert stand_in == ["self", *inspect.signature(one).parameters], name


@needs_gpu_build
def test_the_wheel_keeps_the_contract() -> None:
    assert {name: signature_of(name) for name in CARD} == CARD


@needs_gpu_build
def test_every_call_fits() -> None:
    """Arguments by number and by name. What FAISS overloads takes them by position only."""
    calls = [use for use in on_cards() if use.call is not None]
    assert len(calls) > 10
    for use in calls:
        assert use.call is not None
        given = [object()] * len(use.call.args)
        named = {str(one.arg): object() for one in use.call.keywords}
        assert "None" not in named, f"{use.where}: what ** gives cannot be read here"
        assert not any(isinstance(one, ast.Starred) for one in use.call.args), use.where
        owner, target = found(use.name)
        if inspect.isclass(target) and use.name not in PLAIN:
            assert (len(given), named) == (CARD[use.name].count(",") + 1, {}), use.where
            continue
        itself = [object()] * inspect.isclass(owner)
        inspect.signature(target).bind(*itself, *given, **named)


@needs_gpu_build
def test_every_field_that_is_set_is_a_field_and_keeps_what_is_set() -> None:
    """A misspelt one would be taken, and do nothing."""
    stored = [use for use in on_cards() if use.stored is not None]
    assert len(stored) > 20
    pointed = torch.zeros(3)
    for use in stored:
        owner, field = found(use.name)
        assert isinstance(field, property), f"{use.where}: {use.name} is no field of FAISS's"
        if owner.__name__ not in PLAIN:
            continue  # without a card there is no such object
        one, name = owner(), use.name.split(".")[-1]
        default = getattr(one, name)
        if default is None:
            value = faiss.contrib.torch_utils.swig_ptr_from_FloatTensor(pointed)
            setattr(one, name, value)
            assert int(getattr(one, name)) == pointed.data_ptr()
            continue
        value = not default if isinstance(default, bool) else 2
        setattr(one, name, value)
        assert (getattr(one, name), type(getattr(one, name))) == (value, type(default))


@needs_gpu_build
def test_resources_take_nothing_of_a_card_until_they_are_used() -> None:
    resources = faiss.StandardGpuResources()
    resources.setPinnedMemory(0)
    resources.setTempMemory(256 << 20)
    assert dict(resources.getMemoryInfo()) == {}


MOVED = ["Flat", "SQfp16", "IVF4,Flat", "IVF4,SQ8", "IVF4,SQfp16", "IVF4,PQ4", "PCA4,Flat", "PCAR4,IVF4,PQ2"]
NOT_MOVED = ["HNSW4", "IVF4,PQ4x4fs", "PQ4", "SQ8", "LSH", "IVF4,Flat,RFlat"]


@needs_gpu_build
@no_card
@pytest.mark.parametrize("factory", [*MOVED, *NOT_MOVED])
def test_what_moves_to_a_card(factory: str) -> None:
    """Without one, an index that could be moved is refused for the card's sake, and another for its own."""
    options = faiss.GpuClonerOptions()
    options.use_cuvs = False
    index = faiss.index_factory(8, factory)
    expected = "Invalid GPU device 0" if factory in MOVED else "not implemented on GPU"
    with pytest.raises(RuntimeError, match=expected):
        faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)


@needs_gpu_build
@no_card
def test_an_index_on_no_card_is_an_error() -> None:
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    with pytest.raises(RuntimeError, match="Invalid GPU device 0"):
        faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), 8, config)


FATAL = """
import os, sys
import faiss, numpy as np
resources = faiss.StandardGpuResources()
xb = np.zeros((4, 8), np.float32)
asked = faiss.GpuDistanceParams()
asked.k, asked.dims, asked.numVectors, asked.numQueries = 1, 8, 4, 4
asked.vectors = asked.queries = asked.outDistances = asked.outIndices = faiss.swig_ptr(xb)
os.close(2)  # FAISS's last words
for call in (
    lambda: faiss.bfKnn(resources, asked),
    lambda: resources.getDefaultStream(0),
    lambda: resources.getTempMemoryAvailable(0),
):
    child = os.fork()
    if not child:
        try:
            call()
        finally:
            os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


@needs_gpu_build
@no_card
def test_without_a_card_some_calls_end_the_process() -> None:
    """Why the card is looked for before anything of FAISS's GPU side is called: no exception comes of these."""
    done = subprocess.run([sys.executable, "-c", FATAL], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(int(signal.SIGABRT))] * 3


@needs_gpu_build
def test_the_wheel_has_the_texts_that_are_looked_for() -> None:
    """FAISS's errors are told apart by their words (GpuResources.cpp, StandardGpuResources.cpp, IndexUtils.cu)."""
    library = (Path(faiss.__file__).parent / "libfaiss.so").read_bytes()
    for text in (
        b"StandardGpuResources: alloc fail ",
        b" (cudaMalloc error ",
        b"GPU index only supports min/max-K selection up to %d (requested %d)",
        b"This index type is not implemented on GPU.",
    ):
        assert text in library
