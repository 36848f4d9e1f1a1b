"""The model directory: generations, their manifests, and the loaded model."""

from cfa_index.bank import LISTS_FILE
from cfa_index.bundle.generations import (
    Content,
    category_lock,
    changed_files,
    check_model,
    current_generation,
    generation_folder,
    generation_names,
    list_models,
    set_current,
    write_generation,
)
from cfa_index.bundle.manifest import Addition, HeldOut, Manifest, read_manifest
from cfa_index.bundle.model import (
    BACKBONE_FILE,
    BASELINE_FILE,
    DESCRIPTOR_FILE,
    EPOCHS_FILE,
    INDEX_FILE,
    VECTORS_FILE,
    ModelBundle,
    descriptor_tensors,
    epoch_descriptors,
    index_contents,
    load_array,
    load_descriptor,
)
from cfa_index.bundle.sources import (
    EXEMPLARS_FILE,
    SOURCES_FILE,
    MemorySource,
    Sources,
    exemplars_table,
    read_exemplars,
    read_sources,
    sources_table,
)
from cfa_index.bundle.verdict import ImageScore, ViewScore

TRAIN_LOG_FILE = "train_log.csv"
SELECTION_FILE = "selection.csv"

__all__ = [
    "BACKBONE_FILE",
    "BASELINE_FILE",
    "DESCRIPTOR_FILE",
    "EPOCHS_FILE",
    "EXEMPLARS_FILE",
    "INDEX_FILE",
    "LISTS_FILE",
    "SELECTION_FILE",
    "SOURCES_FILE",
    "TRAIN_LOG_FILE",
    "VECTORS_FILE",
    "Addition",
    "Content",
    "HeldOut",
    "ImageScore",
    "Manifest",
    "MemorySource",
    "ModelBundle",
    "Sources",
    "ViewScore",
    "category_lock",
    "changed_files",
    "check_model",
    "current_generation",
    "descriptor_tensors",
    "epoch_descriptors",
    "exemplars_table",
    "generation_folder",
    "generation_names",
    "index_contents",
    "list_models",
    "load_array",
    "load_descriptor",
    "read_exemplars",
    "read_manifest",
    "read_sources",
    "set_current",
    "sources_table",
    "write_generation",
]
