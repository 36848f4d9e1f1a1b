"""What a model of the recommended settings would take of a card."""

from __future__ import annotations

from cfa_index.backbones import forward_bytes, load_backbone
from cfa_index.footprint import LESS_TEMPORARY, Footprint, memories_footprint, scoring_footprint
from cfa_index.specs import CardSpec, FeatureSpec, ModelSpec
from cfa_index.workflows.doctor_measure import usual_strides


def recommended_footprint(backbone: str, images: int) -> Footprint:
    """Weights, bank and scratch memory, and the step of a batch that takes most.

    Args:
        backbone: its name; it is built with random weights.
        images: of a batch.
    """
    spec, features = ModelSpec(), FeatureSpec(backbone=backbone, strides=usual_strides(backbone))
    network = load_backbone(backbone, features.strides, weights="random")
    width = spec.descriptor.width(sum(network.channels))
    batch = scoring_footprint(
        images=images,
        size_px=features.size_px,
        network_bytes=forward_bytes(network, images, features.size_px),
        patches=features.patches_per_image,
        width=width,
        k=1,
        shortlist=1,
    )
    memories = memories_footprint(spec.bank.memories(features.patches_per_image), width)
    scratch = Footprint.of(LESS_TEMPORARY, temporary_memory=CardSpec().temporary_bytes)
    return network.footprint + memories + scratch + batch
