"""timm's published weights: in the cache of its hub on this machine, or downloaded into it."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path
from typing import Any

from cfa_index.backbones.entry import BackboneEntry, optional_package
from cfa_index.errors import WeightsError

_TIMEOUT_S = 8.0


def hub_path(entry: BackboneEntry) -> Path:
    """Where the hub's cache has the weights of a timm model; a path without a file if it has none.

    No download is tried.

    Raises:
        WeightsError: timm names no repository with weights for this model, or the hub's package is missing.
    """
    hub, (repository, revision) = _hub(), _repository(entry)
    cached = hub.try_to_load_from_cache(repository, entry.checkpoint, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    return Path(hub.constants.HF_HUB_CACHE) / repository / entry.checkpoint


def download_from_hub(entry: BackboneEntry) -> Path:
    """Bring the weights of a timm model into the hub's cache; only a safetensors file is asked for.

    Raises:
        WeightsError: there is no network, or the hub has no such file.
    """
    hub, (repository, revision) = _hub(), _repository(entry)
    url = hub.hf_hub_url(repository, entry.checkpoint, revision=revision)
    try:
        # Asked first, since the hub's own client tries for a minute where there is no network.
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT_S):
            pass
        return Path(hub.hf_hub_download(repository, entry.checkpoint, revision=revision))
    except (OSError, http.client.HTTPException) as error:  # the hub's own errors are of the first kind
        raise WeightsError(
            expected=f"the weights of {entry.name}, {repository}/{entry.checkpoint}, in {hub.constants.HF_HUB_CACHE}",
            got=f"no such file there and no download ({error})",
            remedy=f"fetch {url} where there is a network, then hand it over with --weights FILE",
        ) from error


def _hub() -> Any:
    return optional_package("huggingface_hub", needed_by="timm:NAME", extra="timm")


def _repository(entry: BackboneEntry) -> tuple[str, str | None]:
    """Name and revision of the repository."""
    if not entry.weights:
        raise WeightsError(
            expected=f"published weights of {entry.name}",
            got="none that timm knows",
            remedy="hand some over with --weights FILE, or name the model with another tag",
        )
    name, _, revision = entry.weights.partition("@")
    return name, revision or None
