"""Frozen ImageNet networks by name: levels at strides 4, 8 and 16, own normalisation, own weights.

`registry` describes the networks, `weights` finds, reads and checks their tensors, `network` puts
the two together. Nothing is imported, built or downloaded before `load_backbone` is called.
"""

from cfa_index.backbones.network import Backbone, backbone_from_state, load_backbone
from cfa_index.backbones.registry import BACKBONES, BackboneEntry, backbone_entry, backbone_names
from cfa_index.backbones.weights import WeightsOrigin, checkpoint_path, sha256_of_tensors

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneEntry",
    "WeightsOrigin",
    "backbone_entry",
    "backbone_from_state",
    "backbone_names",
    "checkpoint_path",
    "load_backbone",
    "sha256_of_tensors",
]
