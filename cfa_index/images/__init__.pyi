"""The public names, a home each; `__init__.py` loads them when they are first used."""

from .batches import ImageBatch as ImageBatch, load_batches as load_batches
from .card_decode import CardDecoder as CardDecoder
from .decode import (
    MAX_PIXELS as MAX_PIXELS,
    SUFFIXES as SUFFIXES,
    Source as Source,
    as_image as as_image,
    decode as decode,
    to_rgb as to_rgb,
)
from .folders import (
    Category as Category,
    TestImage as TestImage,
    list_categories as list_categories,
    list_images as list_images,
    open_category as open_category,
    plain_folder as plain_folder,
    read_mask as read_mask,
)
from .frame import (
    Frame as Frame,
    frame_of as frame_of,
    network_pixels as network_pixels,
    square_pixels as square_pixels,
    valid_mask as valid_mask,
)
from .jpegs import Jpeg as Jpeg, read_for_card as read_for_card
from .tiles import (
    ImageMap as ImageMap,
    MapJoiner as MapJoiner,
    count_views as count_views,
    frame_at as frame_at,
    frames_of as frames_of,
    image_maps_of as image_maps_of,
    image_scores_of as image_scores_of,
    map_frame as map_frame,
    stitcher_of as stitcher_of,
    tile_boxes as tile_boxes,
    view_at as view_at,
    view_count as view_count,
    views_of as views_of,
)
from .views import Views as Views, read_entry as read_entry, read_views as read_views
