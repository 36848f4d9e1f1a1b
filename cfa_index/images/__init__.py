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
from cfa_index.images.tiles import (
    ImageMap,
    MapJoiner,
    count_views,
    frame_at,
    frames_of,
    image_maps_of,
    image_scores_of,
    map_frame,
    stitcher_of,
    tile_boxes,
    view_at,
    view_count,
    views,
)

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Category",
    "Frame",
    "ImageBatch",
    "ImageMap",
    "MapJoiner",
    "Source",
    "TestImage",
    "as_image",
    "count_views",
    "decode",
    "frame_at",
    "frame_of",
    "frames_of",
    "image_maps_of",
    "image_scores_of",
    "list_categories",
    "list_images",
    "load_batches",
    "map_frame",
    "network_pixels",
    "open_category",
    "plain_folder",
    "read_mask",
    "stitcher_of",
    "tile_boxes",
    "to_rgb",
    "valid_mask",
    "view_at",
    "view_count",
    "views",
]
