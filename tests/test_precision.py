"""Inference in bfloat16 and compiled, against float32; what the machine cannot do is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from networks import pixels

import cfa_index.devices as devices
from cfa_index import DeviceError, ModelBundle, SpecError
from cfa_index.backbones import Backbone, load_backbone
from cfa_index.bank import MemoryBank, exact_sq_distances
from cfa_index.descriptor import initial_descriptor
from cfa_index.images import frame_of
from cfa_index.scorer import Scorer
from cfa_index.specs import DescriptorSpec, FeatureSpec, PatchScore, ScoreSpec

CPU = torch.device("cpu")
LEVELS_OFF = 0.02
"""What bfloat16 may change in a level of ResNet18, as a share of its norm: eight bits through some twenty layers."""
SCORES_OFF = 0.02
FEATURES = FeatureSpec(backbone="resnet18", strides=(8, 16), size_px=64)


def network() -> Backbone:
    return load_backbone("resnet18", (8, 16), size_px=64, weights="random", seed=0)


def scorer_of(backbone: Backbone, patch_score: PatchScore = "nearest") -> Scorer:
    spec = DescriptorSpec(init="he", gamma_d=0.1, standardise=False)
    phi = initial_descriptor(spec, backbone.channels, None, seed=0)
    with torch.no_grad():
        good = phi(network().pyramid(pixels(4, seed=9))).flatten(0, 1)
    return Scorer(
        backbone,
        phi,
        MemoryBank(np.ascontiguousarray(good[::4].numpy()), CPU),
        features=FEATURES,
        score=ScoreSpec(neighbors=4, patch_score=patch_score, sigma_px=2.0),
    )


FRAMES = [frame_of(64, 64, FEATURES)] * 3


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of the norm."""
    return float((got.float() - expected).norm() / expected.norm())


def test_levels_in_bfloat16_are_close_and_the_saved_tensors_stay_as_published() -> None:
    single, half = network(), network().for_inference("bf16")
    for got, expected in zip(half.pyramid(pixels()), single.pyramid(pixels()), strict=True):
        assert got.dtype == torch.bfloat16
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert off(got, expected) < LEVELS_OFF
    for name, tensor in single.state_tensors().items():
        torch.testing.assert_close(half.state_tensors()[name], tensor, rtol=0, atol=0)


def test_float32_is_left_as_it_is() -> None:
    for got, expected in zip(
        network().for_inference("fp32").levels(pixels()), network().levels(pixels()), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_network_with_depthwise_convolutions_stays_in_float32() -> None:
    plain, half = (load_backbone("efficientnet_b5", (4,), size_px=32, weights="random") for _ in range(2))
    half.for_inference("bf16")
    assert half.precision == "bf16"  # what follows the network is in bfloat16 all the same
    shown = pixels(1, 32)
    torch.testing.assert_close(half.levels(shown)[0], plain.levels(shown)[0], rtol=0, atol=0)


def test_the_descriptor_sums_products_of_bfloat16_in_float32() -> None:
    backbone = network()
    phi = initial_descriptor(
        DescriptorSpec(init="he", gamma_d=0.2, standardise=False), backbone.channels, None, seed=0
    )
    levels = backbone.pyramid(pixels())
    got, expected = phi.folded(torch.bfloat16)(levels), phi.folded()(levels)
    assert got.dtype == torch.float32
    assert off(got, expected) < 0.005


@pytest.mark.parametrize("patch_score", ["nearest", "certainty"])
def test_scores_in_bfloat16_are_close_and_their_distances_exact(patch_score: PatchScore) -> None:
    single = scorer_of(network(), patch_score)
    half = scorer_of(network().for_inference("bf16"), patch_score)
    got = half.score_pixels(pixels(3), FRAMES, all_neighbors=True)
    expected = single.score_pixels(pixels(3), FRAMES)
    torch.testing.assert_close(got.scores, expected.scores, rtol=SCORES_OFF, atol=0)
    assert got.scores.dtype == torch.float32
    patches = half._descriptor(half.backbone.pyramid(pixels(3))).flatten(0, 1)
    exact = exact_sq_distances(patches, half.bank.tensor, got.neighbors.ids)
    torch.testing.assert_close(got.neighbors.sq_distances, exact, rtol=0, atol=0)
    assert bool((exact.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_neighbour_is_the_first_of_several(precision: Any) -> None:
    scorer = scorer_of(network().for_inference(precision))
    alone = scorer.score_pixels(pixels(3), FRAMES)
    several = scorer.score_pixels(pixels(3), FRAMES, all_neighbors=True)
    assert alone.neighbors.ids.shape == (3 * 64, 1)
    assert several.neighbors.ids.shape == (3 * 64, 4)
    torch.testing.assert_close(alone.neighbors.ids, several.neighbors.ids[:, :1], rtol=0, atol=0)
    torch.testing.assert_close(alone.scores, several.scores, rtol=1e-6, atol=0)
    torch.testing.assert_close(alone.maps, several.maps, rtol=1e-6, atol=1e-6)


def test_a_score_that_needs_all_neighbours_finds_them_unasked() -> None:
    scored = scorer_of(network(), "certainty").score_pixels(pixels(3), FRAMES)
    assert scored.neighbors.ids.shape == (3 * 64, 4)


def cpu_with(flags: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    facts = folder / "cpuinfo"
    facts.write_text(f"model name\t: made up\nflags\t\t: fpu sse2 {flags}\n")
    monkeypatch.setattr(devices, "_CPU_FACTS", facts)


@pytest.mark.parametrize(
    ("flags", "able"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512f", False), ("", False)]
)
def test_a_cpu_multiplies_bfloat16_where_it_says_so(
    flags: str, able: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu_with(flags, monkeypatch, tmp_path)
    assert devices.multiplies_bf16(CPU) is able
    monkeypatch.setattr(devices, "_CPU_FACTS", tmp_path / "gone")
    assert not devices.multiplies_bf16(CPU)


def test_what_the_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = made_up.built_workplace(tmp_path)
    model = place.models / "weave"
    with pytest.raises(SpecError, match="precision to be one of fp32, bf16, got 'fp16'"):
        ModelBundle.load(model, precision="fp16")  # type: ignore[arg-type]  # what a person may type
    cpu_with("avx2", monkeypatch, tmp_path)
    with pytest.raises(DeviceError, match=r"cpu to multiply bfloat16.*use --precision fp32"):
        ModelBundle.load(model, precision="bf16")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"C\+\+ compiler, .*; install one"):
        ModelBundle.load(model, compiled=True)


def test_a_loaded_model_scores_in_bfloat16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = made_up.built_workplace(tmp_path)
    cpu_with("avx512_bf16", monkeypatch, tmp_path)  # torch computes it anywhere
    bundles = [ModelBundle.load(place.models / "weave", precision=name) for name in ("fp32", "bf16")]
    images = sorted((place.data / "weave" / "test").glob("*/*.png"))
    single, half = ([one.score for one in bundle.score(images)] for bundle in bundles)
    np.testing.assert_allclose(half, single, rtol=0.05)
    assert [bundle.backbone.precision for bundle in bundles] == ["fp32", "bf16"]


@pytest.mark.slow
@pytest.mark.skipif(devices.cpp_compiler() is None, reason="TorchInductor needs a C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_gives_the_same_levels(precision: Any) -> None:
    plain = network().for_inference(precision)
    compiled = network().for_inference(precision, compiled=True)
    with torch.inference_mode():
        for got, expected in zip(compiled.pyramid(pixels()), plain.pyramid(pixels()), strict=True):
            assert got.dtype == expected.dtype
            assert off(got, expected.float()) < (LEVELS_OFF if precision == "bf16" else 1e-5)


@pytest.fixture
def cudnn() -> Iterator[Any]:
    """torch.backends.cudnn, put back afterwards."""
    backend = torch.backends.cudnn
    before = backend.benchmark, backend.conv.fp32_precision  # type: ignore[attr-defined]  # from PyTorch 2.9 on
    yield backend
    backend.benchmark, backend.conv.fp32_precision = before  # type: ignore[attr-defined]


@pytest.mark.parametrize("of_the_program", ["none", "tf32", "ieee"])
def test_a_card_convolves_in_float32_whatever_the_program_says(cudnn: Any, of_the_program: str) -> None:
    """On a card TF32 is the default of convolutions."""
    cudnn.conv.fp32_precision = of_the_program
    backbone, seen = network(), []
    backbone.trunk.register_forward_hook(lambda *_: seen.append((cudnn.conv.fp32_precision, cudnn.benchmark)))
    cudnn.benchmark = True
    backbone.pyramid(pixels())
    assert seen == [("ieee", False)]
    assert (cudnn.conv.fp32_precision, cudnn.benchmark) == (of_the_program, True)


def test_an_older_torch_convolves_so_too(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.9 there is one switch, in `flags`, which would also put back what a program chose besides."""
    given: list[dict[str, bool]] = []

    @contextmanager
    def flags(**switches: bool) -> Iterator[None]:
        given.append(switches)
        yield

    monkeypatch.delattr(type(cudnn), "conv")
    monkeypatch.setattr(cudnn, "flags", flags)
    monkeypatch.setattr(cudnn, "deterministic", True)
    network().pyramid(pixels())
    assert given == [{"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}]


class Replayed(torch.nn.Module):
    """A network that writes into the memory of its first outputs every time, as a CUDA graph does."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.outputs: list[list[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> list[list[torch.Tensor]]:
        found = self.trunk(x)
        if not self.outputs:
            self.outputs = found
        for kept, new in zip(self.outputs, found, strict=True):
            for old, value in zip(kept, new, strict=True):
                old.copy_(value)
        return self.outputs


def test_on_a_card_a_compiled_network_is_replayed_and_its_levels_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, **options: asked.append(options))
    assert network().to("meta").for_inference("fp32", compiled=True).compiled
    assert network().for_inference("fp32", compiled=True).compiled
    assert asked == [
        {"dynamic": False, "mode": "reduce-overhead"},
        {"dynamic": False, "options": {"freezing": True}},
    ]
    plain, replayed = network(), network()
    replayed.trunk, replayed._is_graph = Replayed(replayed.trunk), True
    first, second = pixels(seed=1), pixels(seed=2)
    for way in ("levels", "pyramid"):
        got = getattr(replayed, way)(first)
        getattr(replayed, way)(second)
        for kept, expected in zip(got, getattr(plain, way)(first), strict=True):
            assert torch.equal(kept, expected)


@pytest.mark.parametrize(
    ("lacking", "what"),
    [("triton", "Triton is not installed"), ("compiler", "no C compiler"), ("capability", "below compute")],
)
def test_what_compiling_for_a_card_needs(monkeypatch: pytest.MonkeyPatch, lacking: str, what: str) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(devices, "find_spec", lambda name: None if lacking == "triton" else name)
    monkeypatch.setenv("CC", "" if lacking == "compiler" else "cc")
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda _device: (6, 1) if lacking == "capability" else (8, 0)
    )
    with pytest.raises(DeviceError, match=f"{what}.*leave --compile out"):
        devices.check_inference(card, "fp32", compiled=True)
    devices.check_inference(card, "fp32", compiled=False)
