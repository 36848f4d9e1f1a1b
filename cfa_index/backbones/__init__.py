"""Frozen ImageNet networks by name: levels at strides 4, 8 and 16, own normalisation, own weights.

`registry` and `timm_models` describe the networks, `weights` and `hub` find, read and check their
tensors, `network` puts the two together, `facts` says what a network costs. Nothing is imported,
built or downloaded before a function is called.
"""

from cfa_index.backbones.entry import BackboneEntry
from cfa_index.backbones.facts import BackboneFacts, backbone_facts, timm_offer
from cfa_index.backbones.forward import forward_bytes
from cfa_index.backbones.network import Backbone, backbone_from_state, load_backbone
from cfa_index.backbones.registry import BACKBONES, backbone_entry, backbone_names
from cfa_index.backbones.weights import WeightsOrigin, checkpoint_path, sha256_of_tensors

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneEntry",
    "BackboneFacts",
    "WeightsOrigin",
    "backbone_entry",
    "backbone_facts",
    "backbone_from_state",
    "backbone_names",
    "checkpoint_path",
    "forward_bytes",
    "load_backbone",
    "sha256_of_tensors",
    "timm_offer",
]
