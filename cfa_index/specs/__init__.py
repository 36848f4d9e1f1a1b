"""Settings: frozen, keyword-only, validated when made. A default lives here and nowhere else.

Ratios follow the paper (arXiv 2206.04325): `gamma_d` and `gamma_c` lie in (0, 1], with
D' = gamma_d * D and M = gamma_c * h * w.
"""

from cfa_index.specs.bank import BankSpec, Compression
from cfa_index.specs.base import LARGEST_SEED, fits
from cfa_index.specs.card import CardSpec, Spread, Storage
from cfa_index.specs.features import (
    CROP_RATIO,
    STRIDES,
    DescriptorSpec,
    FeatureSpec,
    Geometry,
    Initialisation,
)
from cfa_index.specs.index import INDEX_NAMES, IndexSpec
from cfa_index.specs.model import ModelSpec, PresetName
from cfa_index.specs.score import Baseline, PatchScore, Precision, ScoreSpec
from cfa_index.specs.train import Selection, TrainSpec

__all__ = [
    "CROP_RATIO",
    "INDEX_NAMES",
    "LARGEST_SEED",
    "STRIDES",
    "BankSpec",
    "Baseline",
    "CardSpec",
    "Compression",
    "DescriptorSpec",
    "FeatureSpec",
    "Geometry",
    "IndexSpec",
    "Initialisation",
    "ModelSpec",
    "PatchScore",
    "Precision",
    "PresetName",
    "ScoreSpec",
    "Selection",
    "Spread",
    "Storage",
    "TrainSpec",
    "fits",
]
