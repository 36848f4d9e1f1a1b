"""JPEGs that a card can decode, read and checked by a process that has no torch.

Everything that is refused on the host is refused here, by the same words: the header is read by the same code, and a
file that is no whole plain JPEG is decoded on the host as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from cfa_index.errors import ImageError
from cfa_index.images.decode import MAX_PIXELS, opened, orientation_of
from cfa_index.images.frame import Frame, frame_of
from cfa_index.images.views import Views, read_source
from cfa_index.places import Entry, Place
from cfa_index.specs import FeatureSpec

_PLAIN = (0xC0, 0xC2)
"""Frame markers of baseline and progressive JPEG with Huffman codes (ITU-T T.81, table B.1)."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_Y_CB_CR = (1, 2, 3)
"""Names of the components, unless they are something else."""
_END = b"\xff\xd9"


@dataclass(frozen=True, kw_only=True)
class Jpeg:
    """A whole, plain JPEG, not decoded.

    Attributes:
        content: the file's.
        orientation: EXIF's, 1 to 8.
        frame: how its network's square will lie in it.
        on_host: what it is without a card.
    """

    content: bytes
    orientation: int
    frame: Frame
    on_host: Callable[[], Views | ImageError]

    @property
    def frames(self) -> tuple[Frame, ...]:
        """As of `Views`."""
        return (self.frame,)


def read_for_card(
    place: Place, entry: Entry, features: FeatureSpec, max_pixels: int = MAX_PIXELS
) -> Jpeg | Views | ImageError | str:
    """`read_entry`, but for JPEGs that a card can decode.

    Args:
        place, entry: where it is.
        features: geometry and size_px, without tiles.
        max_pixels: as in `decode`.
    """
    if entry.error:
        return entry.error
    try:
        source = place.source(entry.path)
        with opened(source, max_pixels=max_pixels) as image:
            content, size = _plain_jpeg(image), image.size
            orientation = 1 if content is None else orientation_of(image)
    except ImageError as error:
        return error
    on_host = partial(read_source, source, features, max_pixels)
    if content is None:
        return on_host()
    width, height = size if orientation < 5 else size[::-1]
    return Jpeg(
        content=content,
        orientation=orientation,
        frame=frame_of(width, height, features),
        on_host=on_host,
    )


def _plain_jpeg(image: ImageFile) -> bytes | None:
    """The file of an image whose header was read, if it is a JPEG that every decoder takes for the same pixels."""
    if not isinstance(image, JpegImageFile) or image.mode not in ("L", "RGB") or image.fp is None:
        return None
    names = tuple(layer[0] for layer in image.layer)
    if len(names) == 3 and (names != _Y_CB_CR or image.info.get("adobe_transform") == 0):
        return None  # its components may be red, green and blue
    image.fp.seek(0)
    content: bytes = image.fp.read()
    return content if content.endswith(_END) and _frame_marker(content) in _PLAIN else None


def _frame_marker(content: bytes) -> int:
    """The second byte of the marker that says how a JPEG is coded; 0 where none is found."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] in _FRAMES:
            return content[at + 1]
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 0
