"""Files that are named like images and are none: one of every kind, and what is said of it."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import made_up
import numpy as np
from PIL import Image

from cfa_index.images import MAX_PIXELS

_SPARSE_BYTES = 8 << 30
_LOOP, _GONE = "loop.png", "points nowhere.png"


def encoded(kind: str, number: int = 0) -> bytes:
    """A whole image in one of Pillow's formats."""
    buffer = io.BytesIO()
    Image.fromarray(made_up.texture(number)).save(buffer, kind)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG, with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, *more: bytes, pixels: bytes = b"x") -> bytes:
    """A grey PNG whose header promises a size; `more` are chunks between header and pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    ends = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + ends


def _bmp_of(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 16, 0, 0, 54) + header + bytes(16)


def _jpeg_of(width: int, height: int) -> bytes:
    """A whole JPEG with another size written into its frame header."""
    content = bytearray(encoded("JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def _float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def _tiff_that_loops() -> bytes:
    """Its first directory names itself as the next one, and has no tag."""
    return b"II*\0" + struct.pack("<IHI", 8, 0, 8)


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _bad_checksum() -> bytes:
    content = bytearray(encoded("PNG"))
    content[content.index(b"IDAT") + 40] ^= 0xFF
    return bytes(content)


_CONTENTS: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes.png": (lambda: b"", "0 bytes"),
    "zero bytes.tif": (lambda: b"", "0 bytes"),
    "half.png": (lambda: _half(encoded("PNG")), "undamaged image|truncated"),
    "half.jpg": (lambda: _half(encoded("JPEG")), "undamaged image|truncated"),
    "half.tif": (lambda: _half(encoded("TIFF")), "undamaged image|truncated"),
    "half.bmp": (lambda: _half(encoded("BMP")), "undamaged image|truncated"),
    "half.webp": (lambda: _half(encoded("WEBP")), "undamaged image|truncated"),
    "only a signature.png": (lambda: encoded("PNG")[:8], "undamaged image"),
    "checksum.png": (_bad_checksum, "undamaged image"),
    "text.png": (lambda: b"this is no image\n", "begins with"),
    "script.webp": (lambda: b"<svg onload=alert(1)>", "begins with"),
    "a gif.png": (lambda: encoded("GIF"), "begins with"),
    "bomb by header.png": (lambda: png_of(65_000, 65_000), "at most [0-9.]+ megapixels"),
    "bomb by header.jpg": (lambda: _jpeg_of(65_000, 65_000), "at most [0-9.]+ megapixels"),
    "bomb by header.bmp": (lambda: _bmp_of(65_000, 65_000), "at most [0-9.]+ megapixels"),
    "bomb of text.png": (
        lambda: png_of(64, 64, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9))),
        "undamaged image",
    ),
    "no rows.png": (lambda: png_of(64, 0), "image|pixel"),
    "floats.tif": (_float_tiff, "32-bit float"),
    "loops.tiff": (_tiff_that_loops, "undamaged image"),
}
"""Name, what makes the content, and what its row's error must match."""


def _bomb_by_content(path: Path) -> None:
    made_up.write_huge(path)


def _sparse(path: Path) -> None:
    """A whole picture with gigabytes of nothing behind it, which take no place on the disk."""
    path.write_bytes(png_of(65_000, 65_000))
    os.truncate(path, _SPARSE_BYTES)


def _socket(path: Path) -> None:
    """Bound below its own folder's descriptor: a socket's whole name takes at most 107 bytes."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as unbound:
            unbound.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


_OTHERS: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "bomb by content.png": (_bomb_by_content, "at most [0-9.]+ megapixels"),
    "gigabytes.png": (_sparse, "at most|too large|megabytes"),
    "a folder.png": (lambda path: path.mkdir(), "directory"),
    "a pipe.png": (os.mkfifo, "pipe, socket or device"),
    "a socket.png": (_socket, "pipe, socket or device|No such device"),
    _GONE: (lambda path: path.symlink_to("nothing.png"), "No such file"),
    _LOOP: (lambda path: path.symlink_to(_LOOP), "symbolic links"),
    "endless.png": (lambda path: path.symlink_to("/dev/zero"), "pipe, socket or device"),
    "fails when read.png": (lambda path: path.symlink_to("/proc/self/mem"), "."),
    "a link to a folder.png": (lambda path: path.symlink_to("/proc"), "directory"),
}


def kinds() -> list[str]:
    """Names of every kind, sorted."""
    return sorted([*_CONTENTS, *_OTHERS])


def write(folder: Path, kind: str, name: str | bytes | None = None) -> Path:
    """One broken file of a kind, by default under the kind's own name."""
    path = folder / (os.fsdecode(name) if name is not None else kind)
    if kind in _CONTENTS:
        path.write_bytes(_CONTENTS[kind][0]())
    elif kind == _LOOP:
        path.symlink_to(path.name)
    else:
        _OTHERS[kind][0](path)
    return path


def explains(kind: str, error: str | None) -> bool:
    """Whether a row's error is the reason that a file of this kind has, on one line."""
    pattern = (_CONTENTS.get(kind) or _OTHERS[kind])[1]
    return error is not None and "\n" not in error and re.search(pattern, error) is not None


def repair(path: Path, number: int = 0) -> None:
    """A whole image in the place of a broken file."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(encoded("PNG", number))


assert MAX_PIXELS < 10_000 * 10_000, "or the bomb by content is none"
