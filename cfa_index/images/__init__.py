"""Images: find them, read them safely, and fit them to the network's square."""

from cfa_index.images.batches import ImageBatch, load_batches
from cfa_index.images.decode import MAX_PIXELS, SUFFIXES, Source, as_image, decode, to_rgb
from cfa_index.images.folders import (
    Category,
    TestImage,
    list_categories,
    list_images,
    open_category,
    plain_folder,
    read_mask,
)
from cfa_index.images.frame import Frame, frame_of, network_pixels, valid_mask

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Category",
    "Frame",
    "ImageBatch",
    "Source",
    "TestImage",
    "as_image",
    "decode",
    "frame_of",
    "list_categories",
    "list_images",
    "load_batches",
    "network_pixels",
    "open_category",
    "plain_folder",
    "read_mask",
    "to_rgb",
    "valid_mask",
]
