"""What a generation says of itself: settings, lineage, threshold, and a checksum of every file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from cfa_index.backbones import WeightsOrigin
from cfa_index.bank import IndexState
from cfa_index.errors import BundleError, SpecError
from cfa_index.files import is_sealed, seal
from cfa_index.metrics import Threshold
from cfa_index.specs import ModelSpec, fits

SCHEMA_VERSION = 3
_ADDED_TO_SPEC: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    2: {
        "descriptor": {"expansion": 1.0},
        "bank": {"share": None, "coreset_eps": 0.9, "coverage": 0.5},
        "train": {"learn_radius": True, "select": "none"},
        "score": {"baseline": "none"},
    },
    3: {"index": {"min_recall": 0.99, "budget_memory_bytes": None, "budget_latency_ms": None}},
}
"""Settings that a schema version added, by section, with the values that the versions before it meant."""
_ADDED: Mapping[int, Mapping[str, Any]] = {2: {}, 3: {"index": None, "added": [], "removed": []}}
"""The same of the manifest itself."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Good images that neither bank nor training saw: their uris and raw scores, in step."""

    uris: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Addition:
    """Good images that were added after the build, in a PatchStore of their own.

    Attributes:
        source: their common folder.
        store: name of the store, without its suffix.
        images_sha256: of its image table.
        removed: absolute uris of those that are no longer in the model, sorted.
        averaged: whether the bank was made of all images since, these among them; False while their memories
            are patches of their own.
    """

    source: str
    store: str
    images_sha256: str
    removed: tuple[str, ...] = ()
    averaged: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "removed": list(self.removed)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises TypeError where a key is unknown."""
        return cls(**{**values, "removed": tuple(values.get("removed", ()))})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a generation is: enough to load it, to repeat it, and to see where it came from.

    Attributes:
        generation, parent: names such as "0002"; parent is "" for a first build.
        action: what made it: `build`, `train`, `add`, `remove`, `rebuild` or `reindex`.
        source: the folder of good images that the uris are relative to.
        images_sha256: of the store's image table, to notice that the images have changed since.
        weights: where the backbone's weights came from.
        channels: C_l of each level.
        radius: r after training, or 0 before.
        added: what came to the build's images later, in order.
        removed: uris of the build's images that are no longer in the model, sorted.
        index: the bank's index as it was tuned; None for Flat.
        threshold: of the scores; None without held-out images.
        versions: of the libraries that wrote it.
    """

    category: str
    generation: str
    parent: str
    action: str
    created: str
    source: str
    images: int
    images_sha256: str
    spec: ModelSpec
    weights: WeightsOrigin
    channels: tuple[int, ...]
    radius: float
    index: IndexState | None = None
    added: tuple[Addition, ...] = ()
    removed: tuple[str, ...] = ()
    held_out: HeldOut
    threshold: Threshold | None
    versions: Mapping[str, str]
    files: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the schema version and the document's own checksum."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["spec"] = self.spec.to_dict()
        values["index"] = self.index.to_dict() if self.index else None
        values["added"] = [addition.to_dict() for addition in self.added]
        values["removed"] = list(self.removed)
        values["weights"] = asdict(self.weights)
        values["channels"] = list(self.channels)
        values["held_out"] = {"uris": list(self.held_out.uris), "scores": list(self.held_out.scores)}
        values["threshold"] = asdict(self.threshold) if self.threshold else None
        values["versions"], values["files"] = dict(self.versions), dict(self.files)
        return seal({"schema_version": SCHEMA_VERSION, **values})

    @classmethod
    def from_dict(cls, document: Any, where: Path) -> Self:
        """Check and read a manifest.

        Raises:
            BundleError: it is of a newer version, or not as it was written.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BundleError(
                expected=f"a manifest of schema version {SCHEMA_VERSION} or older at {where}",
                got=f"version {version}",
                remedy="upgrade cfa-index, or build the model again with this version",
            )
        if not isinstance(version, int) or version < 1 or not is_sealed(document):
            raise damaged(where, "a document that does not match its own checksum")
        values = {k: v for k, v in document.items() if k not in ("schema_version", "sha256")}
        for newer in range(version + 1, SCHEMA_VERSION + 1):
            values = {**values, **_ADDED[newer]}
        values["index"] = IndexState.from_dict(values["index"]) if values["index"] else None
        values["added"] = tuple(Addition.from_dict(addition) for addition in values["added"])
        values["removed"] = tuple(values["removed"])
        values["spec"] = ModelSpec.from_dict(_upgraded(values["spec"], version))
        values["weights"] = WeightsOrigin(**values["weights"])
        values["channels"] = tuple(values["channels"])
        values["held_out"] = HeldOut(
            uris=tuple(values["held_out"]["uris"]), scores=tuple(values["held_out"]["scores"])
        )
        values["threshold"] = Threshold(**values["threshold"]) if values["threshold"] else None
        manifest = cls(**values)
        if not fits(manifest, cls):
            raise damaged(where, "values of other types than a manifest has")
        return manifest


def _upgraded(spec: dict[str, Any], version: int) -> dict[str, Any]:
    """The settings of an older manifest with those that came after it."""
    for newer in range(version + 1, SCHEMA_VERSION + 1):
        for section, added in _ADDED_TO_SPEC[newer].items():
            spec = {**spec, section: {**spec[section], **added}}
    return spec


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a generation. Raises BundleError when it is missing, newer or damaged."""
    file = folder / "manifest.json"
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise damaged(file, "no file") from error
    except (ValueError, RecursionError) as error:
        raise damaged(file, "text that is not JSON") from error
    try:
        return Manifest.from_dict(document, file)
    except SpecError as error:
        raise BundleError(expected=error.expected, got=error.got, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(file, f"values that no manifest has ({error})") from error


def damaged(file: Path, got: str) -> BundleError:
    """The error for a file that is missing or not as it was written."""
    return BundleError(
        expected=f"{file} as it was written",
        got=got,
        remedy="restore it from a copy, or build the model again",
    )
