"""What a bank is: its size, its bytes by part, its index, its images, and how it came to be."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfa_index.bundle import (
    SOURCES_FILE,
    VECTORS_FILE,
    Manifest,
    current_generation,
    generation_folder,
    generation_names,
    load_array,
    read_manifest,
    read_sources,
)
from cfa_index.errors import BundleError, StoreError
from cfa_index.workflows.opening import fit_and_held, open_store


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """An image of a model.

    Attributes:
        uri: below the build's folder, or absolute for one that was added.
        memories: that came from it; of a mean over patches, the image of the nearest one.
        held_out: whether it is kept from the bank.
    """

    uri: str
    memories: int
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A generation in a few words; `damaged` where its manifest cannot be read."""

    generation: str
    parent: str = ""
    action: str = "damaged"
    created: str = ""
    index: str = ""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """One generation of a model, as `bank info` shows it.

    Attributes:
        path, manifest: of the generation.
        memories, width: M and D'.
        file_bytes: of each file on disk, by name.
        images: most memories first, held-out ones last. Images that have no memory and set no threshold are
            known from the store alone.
        lineage: all generations, first to last.
        current: name of the generation in use.
    """

    path: Path
    manifest: Manifest
    memories: int
    width: int
    file_bytes: dict[str, int]
    images: tuple[SourceImage, ...]
    lineage: tuple[Ancestor, ...]
    current: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        manifest = self.manifest
        return {
            "schema_version": 1,
            "category": manifest.category,
            "generation": manifest.generation,
            "current": self.current,
            "path": str(self.path),
            "memories": self.memories,
            "width": self.width,
            "method": manifest.spec.bank.method,
            "index": manifest.index.to_dict() if manifest.index else None,
            "bytes": self.file_bytes,
            "images": manifest.images,
            "additions": len(manifest.added),
            "images_removed": [*manifest.removed, *(uri for one in manifest.added for uri in one.removed)],
            "held_out": len(manifest.held_out.uris),
            "threshold": manifest.threshold.value if manifest.threshold else None,
            "memories_by_image": {image.uri: image.memories for image in self.images if image.memories},
            "source_images": [vars(image) for image in self.images],
            "lineage": [vars(one) for one in self.lineage],
        }


def take_inventory(
    models_dir: Path, category: str, generation: str | None = None, *, features_dir: Path | None = None
) -> Inventory:
    """Look at a generation without loading it.

    Args:
        models_dir, category: where the model is.
        generation: its name; None for the one in use.
        features_dir: where the stores may be, for the images that left nothing in the model.

    Raises:
        BundleError: there is no such model or generation, or it is damaged.
    """
    folder = models_dir / category
    current = current_generation(folder)
    path = current if generation is None else generation_folder(folder, generation)
    manifest = read_manifest(path)
    memories, width = load_array(path / VECTORS_FILE).shape
    sizes = {name: (path / name).stat().st_size for name in manifest.files if (path / name).exists()}
    return Inventory(
        path=path,
        manifest=manifest,
        memories=memories,
        width=width,
        file_bytes=dict(sorted(sizes.items(), key=lambda item: -item[1])),
        images=_images(path, manifest, features_dir),
        lineage=tuple(_ancestor(folder / "generations" / name) for name in generation_names(folder)),
        current=current.name,
    )


def _images(path: Path, manifest: Manifest, features_dir: Path | None) -> tuple[SourceImage, ...]:
    counts = Counter(source.uri for source in read_sources(path / SOURCES_FILE))
    known, held = set(counts), set(manifest.held_out.uris)
    if features_dir is not None:
        with suppress(StoreError):  # then what the model itself knows has to do
            store = open_store(manifest, features_dir)
            fit_rows, held_rows = fit_and_held(store, manifest.spec)
            known |= {store.images[row].uri for row in fit_rows}
            held |= {store.images[row].uri for row in held_rows}
    images = [SourceImage(uri=uri, memories=counts[uri], held_out=uri in held) for uri in known | held]
    return tuple(sorted(images, key=lambda image: (image.held_out, -image.memories, image.uri)))


def _ancestor(path: Path) -> Ancestor:
    try:
        manifest = read_manifest(path)
    except BundleError:
        return Ancestor(generation=path.name)
    return Ancestor(
        generation=path.name,
        parent=manifest.parent,
        action=manifest.action,
        created=manifest.created,
        index=manifest.index.describe() if manifest.index else "flat",
    )
