"""The model directory: generations, their manifests, and the loaded model."""

from cfa_index.bundle.generations import (
    Content,
    category_lock,
    current_generation,
    list_models,
    set_current,
    write_generation,
)
from cfa_index.bundle.manifest import HeldOut, Manifest, read_manifest
from cfa_index.bundle.model import (
    BACKBONE_FILE,
    BASELINE_FILE,
    DESCRIPTOR_FILE,
    EPOCHS_FILE,
    INDEX_FILE,
    VECTORS_FILE,
    ImageScore,
    ModelBundle,
    descriptor_tensors,
    epoch_descriptors,
)
from cfa_index.bundle.sources import (
    EXEMPLARS_FILE,
    SOURCES_FILE,
    MemorySource,
    exemplars_table,
    sources_table,
)

TRAIN_LOG_FILE = "train_log.csv"
SELECTION_FILE = "selection.csv"

__all__ = [
    "BACKBONE_FILE",
    "BASELINE_FILE",
    "DESCRIPTOR_FILE",
    "EPOCHS_FILE",
    "EXEMPLARS_FILE",
    "INDEX_FILE",
    "SELECTION_FILE",
    "SOURCES_FILE",
    "TRAIN_LOG_FILE",
    "VECTORS_FILE",
    "Content",
    "HeldOut",
    "ImageScore",
    "Manifest",
    "MemorySource",
    "ModelBundle",
    "category_lock",
    "current_generation",
    "descriptor_tensors",
    "epoch_descriptors",
    "exemplars_table",
    "list_models",
    "read_manifest",
    "set_current",
    "sources_table",
    "write_generation",
]
