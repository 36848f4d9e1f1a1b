"""What a bank is: its size, its bytes by part, its index, its images, and how it came to be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfa_index.bundle import (
    SOURCES_FILE,
    VECTORS_FILE,
    Manifest,
    current_generation,
    generation_folder,
    list_generations,
    load_array,
    read_manifest,
    read_sources,
)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """One generation of a model, as `bank info` shows it.

    Attributes:
        path, manifest: of the generation.
        memories, width: M and D'.
        file_bytes: of each file on disk, by name.
        memories_by_image: how many memories came from each image, most first; of a mean over patches the
            image of the nearest one.
        lineage: manifests of all generations, first to last.
        current: name of the generation in use.
    """

    path: Path
    manifest: Manifest
    memories: int
    width: int
    file_bytes: dict[str, int]
    memories_by_image: dict[str, int]
    lineage: tuple[Manifest, ...]
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
            "images_added": len(manifest.added),
            "images_removed": list(manifest.removed),
            "held_out": len(manifest.held_out.uris),
            "threshold": manifest.threshold.value if manifest.threshold else None,
            "memories_by_image": self.memories_by_image,
            "lineage": [
                {
                    "generation": one.generation,
                    "parent": one.parent,
                    "action": one.action,
                    "created": one.created,
                }
                for one in self.lineage
            ],
        }


def take_inventory(models_dir: Path, category: str, generation: str | None = None) -> Inventory:
    """Look at a generation without loading it.

    Args:
        models_dir, category: where the model is.
        generation: its name; None for the one in use.

    Raises:
        BundleError: there is no such model or generation, or it is damaged.
    """
    folder = models_dir / category
    current = current_generation(folder)
    path = current if generation is None else generation_folder(folder, generation)
    manifest = read_manifest(path)
    memories, width = load_array(path / VECTORS_FILE).shape
    sizes = {name: (path / name).stat().st_size for name in manifest.files if (path / name).exists()}
    counts = Counter(source.uri for source in read_sources(path / SOURCES_FILE))
    return Inventory(
        path=path,
        manifest=manifest,
        memories=memories,
        width=width,
        file_bytes=dict(sorted(sizes.items(), key=lambda item: -item[1])),
        memories_by_image=dict(counts.most_common()),
        lineage=tuple(list_generations(folder)),
        current=current.name,
    )
