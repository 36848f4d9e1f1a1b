"""Whatever comes in becomes one upright 8-bit RGB image, the same way everywhere.

The rules, so that a number means the same in building and in scoring:

- 16 bits become 8 by keeping the high byte, as Pillow does for 16-bit colour: fixed, never a stretch
  that depends on the image. A 12-bit sensor should be shifted to fill 16 bits before it is saved.
- Grey is repeated, a palette looked up, CMYK, YCbCr and 1 bit converted by Pillow.
- Alpha, in any form, is blended over black.
- The EXIF orientation is applied and forgotten; an EXIF block that cannot be read says nothing.
- Colour profiles are not applied. Of an animation or a file of many pages, the first image counts.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cfa_index.errors import ImageError
from cfa_index.files import printable

if TYPE_CHECKING:  # a process that only decodes does without
    import torch

SUFFIXES: frozenset[str] = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Names that end so, in any case, are taken for images."""
MAX_PIXELS = 64_000_000
"""Width times height above which an image is refused before its pixels are decoded."""

Source: TypeAlias = "Path | str | bytes | Image.Image | npt.NDArray[Any] | torch.Tensor"
"""What `as_image` takes."""

# The readers are named one by one and chosen by the file's first bytes, so that no other parser ever
# sees a file. `Image.open(formats=...)` would do that too, but prints a warning of its own from 89
# megapixels on, and filters of warnings are not safe among threads.
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
)
_HEAD_BYTES = 12

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From the EXIF orientation to what makes the image upright."""

_BITS_PER_SAMPLE_TAG, _PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 258, 262, 0


def decode(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file, or the bytes of one: png, jpg, bmp, tif or webp, told by its content.

    16-bit grey keeps its high byte, alpha is blended over black, the EXIF orientation is applied (all
    rules: top of this module). The size is read from the header before any pixel is decoded.

    Args:
        source: path, or a file's content.
        max_pixels: width times height that is refused when exceeded.

    Returns:
        A new image of mode RGB, 8 bits a channel, with an empty `info`.

    Raises:
        ImageError: missing, empty, truncated, corrupt, too large, no regular file, no image, or of a
            pixel type without a rule (32-bit float). One line, with the file's name.
    """
    with opened(source, max_pixels=max_pixels) as image:
        return _upright_rgb(image, name_of(source), is_ours=True)


@contextmanager
def opened(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile]:
    """Open an image of which only the header is read; whatever fails in the body is an ImageError.

    Raises:
        ImageError: see `decode`.
    """
    name = name_of(source)
    with reading(name), _stream(source, name) as stream:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
        with _reader(head, name)(stream) as image:
            check_size(*image.size, max_pixels=max_pixels, name=name)
            yield image


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever the body raises into an ImageError that names the image.

    Pillow's readers raise nearly every builtin error on a file made to break them, and under warnings
    as errors its warnings too: the net is wide on purpose, and its body should be small.

    Raises:
        ImageError: the body raised any `Exception`.
    """
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            expected=f"an image of a sensible size in {name}", got=str(error), remedy="scale it down"
        ) from error
    except Exception as error:
        refused = error.strerror if isinstance(error, OSError) else None
        raise ImageError(
            expected=f"to read {name}" if refused else f"a whole, undamaged image in {name}",
            got=refused or str(error) or type(error).__name__,
            remedy="check the path and its permissions" if refused else "export it again or remove it",
        ) from error


def name_of(source: Path | bytes) -> str:
    """How messages call a source; file names that are not UTF-8 are escaped, so that they can be printed."""
    if isinstance(source, bytes):
        return "the given bytes"
    return printable(str(source))


def regular_file(path: Path) -> os.stat_result:
    """Status of a file whose content can be read without waiting: a pipe would block for ever.

    Raises:
        ImageError: the path is missing, a directory, or no regular file.
        OSError: it cannot be looked at.
    """
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        return status
    raise ImageError(
        expected=f"an image file at {name_of(path)}",
        got="a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device",
        remedy="rename it or move it away",
    )


def check_size(width: int, height: int, *, max_pixels: int, name: str) -> None:
    """Raise ImageError when an image has no pixels, or more than `max_pixels`."""
    if 0 < width * height <= max_pixels:
        return
    raise ImageError(
        expected=f"at most {max_pixels / 1e6:g} megapixels" if width * height else "at least one pixel",
        got=f"{width}x{height} = {width * height / 1e6:.1f} megapixels in {name}",
        remedy="scale the image down or cut it into parts" if width * height else "pass another image",
    )


def _stream(source: Path | bytes, name: str) -> IO[bytes]:
    size = len(source) if isinstance(source, bytes) else regular_file(source).st_size
    if size == 0:
        raise ImageError(expected=f"an image in {name}", got="0 bytes", remedy="export it again or remove it")
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _reader(head: bytes, name: str) -> type[ImageFile]:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile
    for magic, reader in _READERS:
        if head.startswith(magic):
            return reader
    raise ImageError(
        expected=f"a png, jpg, bmp, tif or webp image in {name}",
        got=f"a file that begins with {head[:8]!r}",
        remedy="convert it to one of these or remove it",
    )


def _upright_rgb(image: Image.Image, name: str, *, is_ours: bool = False) -> Image.Image:
    """An RGB image with the orientation applied; without `info`, where it would be applied again.

    It is a new one, unless the image `is_ours` alone: a copy is about a tenth of reading a JPEG of 1,024 px.
    """
    image.load()  # PNG and TIFF know their orientation only now
    turn = _TURNS.get(orientation_of(image))
    rgb = to_rgb(image, name=name)
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image and not is_ours:
        rgb = image.copy()
    rgb.info = {}
    return rgb


def orientation_of(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where an image says nothing, or nothing that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # as wide as in `reading`, and the pixels are fine without it
        return 1


def to_rgb(image: Image.Image, *, name: str = "the given image") -> Image.Image:
    """Convert to 8-bit RGB by the rules at the top of this module; the orientation is left alone.

    Args:
        image: of any mode.
        name: how messages call it.

    Returns:
        The image itself when it is RGB and opaque, else a new one.

    Raises:
        ImageError: a pixel type without a rule (32-bit float, integers beyond 16 bits, 12-bit or
            white-is-zero 16-bit TIFF), or the pixels cannot be decoded.
    """
    with reading(name):
        if image.mode == "F":
            raise ImageError(
                expected=f"8- or 16-bit pixels in {name}",
                got="32-bit float",
                remedy="scale the values to 0..65535 and save them as 16-bit grey",
            )
        if image.mode == "I" or image.mode.startswith("I;16"):
            return Image.fromarray(_high_byte(image, name)).convert("RGB")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            black = Image.new("RGB", image.size)
            black.paste(rgba, mask=rgba.getchannel("A"))
            return black
        return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    """(H, W) uint8 of a 16-bit grey image; mode I is 32 bits wide and may hold more."""
    tags = getattr(image, "tag_v2", {})
    # Pillow hands these out as they lie in the file: nearly black, and as a negative.
    if tags.get(_BITS_PER_SAMPLE_TAG) == (12,) or tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        raise ImageError(
            expected=f"16-bit grey where 0 is black in {name}",
            got="a TIFF of 12 bits, or one where 0 is white",
            remedy="save it as 16-bit PNG",
        )
    values = np.array(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise ImageError(
            expected=f"grey values from 0 to 65535 in {name}",
            got=f"{low} to {high}",
            remedy="scale the values to 16 bits and save them again",
        )
    key = image.info.get("transparency")
    if isinstance(key, int):
        values[values == key] = 0
    grey: npt.NDArray[np.uint8] = (values >> 8).astype(np.uint8)
    return grey


def as_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The library's door: a file or an image in memory becomes RGB as in `decode`.

    Args:
        source: a path or a file's bytes; a PIL image (its EXIF orientation is applied); an array
            (H, W) or (H, W, 1|3|4), uint8, uint16 (high byte) or float in [0, 1]; a tensor
            (1|3, H, W) on any device, uint8 or float in [0, 1].
        max_pixels: as in `decode`.

    Returns:
        A new image of mode RGB: nothing is shared with `source`.

    Raises:
        ImageError: `decode`'s, or another shape, dtype or range (NaN included).
    """
    if isinstance(source, str):
        source = Path(source)
    if isinstance(source, Path | bytes):
        return decode(source, max_pixels=max_pixels)
    with reading("the given image"):
        if isinstance(source, Image.Image):
            check_size(*source.size, max_pixels=max_pixels, name="the given image")
            return _upright_rgb(source, "the given image")
        if _is_tensor(source):
            return _from_array(_tensor_values(source), max_pixels, "the given tensor")
        if isinstance(source, np.ndarray):
            return _from_array(source, max_pixels, "the given array")
    raise ImageError(
        expected="a path, bytes, PIL image, array or tensor",
        got=type(source).__name__,
        remedy="pass one of these for each image",
    )


def _is_tensor(source: object) -> TypeGuard[torch.Tensor]:
    """Nobody has a tensor who has not imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _tensor_values(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """(H, W, C) uint8 or float32 of a tensor (C, H, W)."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ImageError(
            expected="a tensor (3, H, W) or (1, H, W)",
            got=f"shape {tuple(tensor.shape)}",
            remedy="pass one image at a time, channels first",
        )
    import torch

    if tensor.dtype != torch.uint8 and not tensor.dtype.is_floating_point:
        raise ImageError(
            expected="a tensor of uint8, or of floats in [0, 1]",
            got=str(tensor.dtype),
            remedy="convert the tensor first",
        )
    values = tensor.detach().permute(1, 2, 0).cpu()
    array: npt.NDArray[Any] = (values if values.dtype == torch.uint8 else values.float()).numpy()
    return array


def _from_array(array: npt.NDArray[Any], max_pixels: int, name: str) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            expected="an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)",
            got=f"shape {array.shape}",
            remedy="pass one image at a time, channels last (channels come first in tensors only)",
        )
    check_size(array.shape[1], array.shape[0], max_pixels=max_pixels, name=name)
    pixels = _bytes_of(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    # `fromarray` copies RGB; grey and RGBA it may share, and then the conversion copies.
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name=name)


def _bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(
            expected="an array of uint8 or uint16, or of floats in [0, 1]",
            got=str(array.dtype),
            remedy="convert the array first",
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # so written, NaN fails too
        raise ImageError(
            expected="floats in [0, 1]",
            got=f"{low:g} to {high:g}",
            remedy="divide by the largest possible value; the model normalises by itself",
        )
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
