"""Every mode and format becomes the same RGB; everything broken becomes one line."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from cfa_index.errors import ImageError
from cfa_index.images import MAX_PIXELS, SUFFIXES, as_image, decode, to_rgb

Array = npt.NDArray[Any]

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 5), dtype=np.uint16)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: Pillow does not write the 16-bit colour ones."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks)


def png16(values: Array, *extra: tuple[bytes, bytes]) -> bytes:
    """(H, W, C) uint16 as a 16-bit PNG of grey, grey + alpha, RGB or RGBA."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *extra)


def tiff(width: int, height: int, *, bits: int, photometric: int, data: bytes) -> bytes:
    """A little-endian, uncompressed grey TIFF by hand."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + data


def grey3(values: Array) -> Array:
    return np.repeat(values[:, :, None], 3, axis=2)


def over_black(rgb: Array, alpha: Array) -> Array:
    return np.rint(rgb.astype(np.float64) * alpha[:, :, None] / 255).astype(np.uint8)


def pixels(source: Any) -> Array:
    image = decode(source)
    assert image.mode == "RGB"
    assert image.info == {}
    return np.asarray(image)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


# Modes and formats


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_lossless_colour_and_grey_are_exact(file_format: str) -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(COLOUR), file_format)), COLOUR)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(GREY), file_format)), grey3(GREY))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_compressions(compression: str, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(COLOUR), "TIFF", compression=compression)
    np.testing.assert_array_equal(pixels(content), COLOUR)
    (tmp_path / "x.tif").write_bytes(content)
    np.testing.assert_array_equal(pixels(tmp_path / "x.tif"), COLOUR)


def test_webp_lossless_and_with_alpha() -> None:
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(COLOUR), "WEBP", lossless=True)), COLOUR)
    rgba = np.dstack([COLOUR, GREY])
    content = encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(pixels(content), over_black(COLOUR, GREY))


def test_jpeg_colour_grey_and_cmyk_come_near() -> None:
    smooth = np.asarray(Image.linear_gradient("L").resize((64, 64)))
    image = Image.fromarray(smooth)
    for mode in ("L", "RGB", "CMYK"):
        got = pixels(encoded(image.convert(mode), "JPEG", quality=95))
        assert np.abs(got.astype(int) - grey3(smooth)).max() <= 4, mode


def test_a_jpeg_of_many_pictures_gives_the_first() -> None:
    first, second = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "black")
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert pixels(content).min() == 255


def test_cmyk_tiff_is_pillows_own_conversion() -> None:
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    np.testing.assert_array_equal(pixels(encoded(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_one_bit_is_black_and_white(file_format: str) -> None:
    bits = GREY > 127
    content = encoded(Image.fromarray(bits), file_format)
    np.testing.assert_array_equal(pixels(content), grey3(bits.astype(np.uint8) * 255))


def test_palette_is_looked_up() -> None:
    image = Image.fromarray(COLOUR).quantize(8)
    expected = np.asarray(image.convert("RGB"))
    for file_format in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(pixels(encoded(image, file_format)), expected)


def test_palette_with_transparent_entries_is_blended_over_black() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 100, 50, 10, 20, 30, 255, 255, 255])
    image.putdata([0, 1, 2])
    some = pixels(encoded(image, "PNG", transparency=bytes([0, 128, 255])))
    expected = [[0, 0, 0], [round(v * 128 / 255) for v in (10, 20, 30)], [255] * 3]
    np.testing.assert_array_equal(some[0], expected)
    one = pixels(encoded(image, "PNG", transparency=2))
    np.testing.assert_array_equal(one[0], [[200, 100, 50], [10, 20, 30], [0, 0, 0]])


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_alpha_is_blended_over_black(mode: str) -> None:
    rgba = Image.fromarray(np.dstack([grey3(GREY), GREY[::-1]]))
    image = rgba.convert(mode) if mode != "PA" else rgba.convert("RGB").quantize(256).convert("PA")
    if mode == "PA":
        image.putalpha(Image.fromarray(np.ascontiguousarray(GREY[::-1])))
    expected = over_black(grey3(GREY), GREY[::-1])
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected)
    if mode != "PA":
        np.testing.assert_array_equal(pixels(encoded(image, "PNG")), expected)


def test_a_transparent_colour_becomes_black() -> None:
    values = np.array([[[9, 8, 7], [1, 2, 3]]], dtype=np.uint8)
    content = encoded(Image.fromarray(values), "PNG", transparency=(9, 8, 7))
    np.testing.assert_array_equal(pixels(content)[0], [[0, 0, 0], [1, 2, 3]])
    deep = np.array([[[40000], [300]]], dtype=np.uint16)
    content = png16(deep, (b"tRNS", struct.pack(">H", 40000)))
    np.testing.assert_array_equal(pixels(content)[0], [[0, 0, 0], [1, 1, 1]])


# 16 bits


def test_16_bit_grey_keeps_its_high_byte() -> None:
    expected = grey3((DEEP >> 8).astype(np.uint8))
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(DEEP), "PNG")), expected)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(DEEP), "TIFF")), expected)
    big_endian = Image.fromarray(DEEP.astype(">u2"))
    assert big_endian.mode == "I;16B"
    np.testing.assert_array_equal(pixels(encoded(big_endian, "TIFF")), expected)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF")), expected)


def test_16_bit_colour_and_alpha_keep_their_high_bytes() -> None:
    deep = RNG.integers(0, 65536, (4, 3, 4), dtype=np.uint16)
    high = (deep >> 8).astype(np.uint8)
    np.testing.assert_array_equal(pixels(png16(deep[:, :, :1])), grey3(high[:, :, 0]))
    np.testing.assert_array_equal(pixels(png16(deep[:, :, :3])), high[:, :, :3])
    np.testing.assert_array_equal(
        pixels(png16(deep[:, :, 2:])), over_black(grey3(high[:, :, 2]), high[:, :, 3])
    )
    np.testing.assert_array_equal(pixels(png16(deep)), over_black(high[:, :, :3], high[:, :, 3]))


def test_16_bits_are_never_stretched() -> None:
    dim = np.full((4, 4), 300, dtype=np.uint16)
    assert set(pixels(encoded(Image.fromarray(dim), "PNG")).ravel()) == {1}


def test_more_than_16_bits_are_refused() -> None:
    for values in ([[0, 70000]], [[-1, 5]]):
        content = encoded(Image.fromarray(np.array(values, dtype=np.int32)), "TIFF")
        text = error_of(partial(decode, content))
        assert "from 0 to 65535" in text


def test_12_bit_and_white_is_zero_tiffs_are_refused() -> None:
    assert "12 bits" in error_of(lambda: decode(tiff(2, 1, bits=12, photometric=1, data=b"\xff\xff\xff")))
    white = tiff(2, 1, bits=16, photometric=0, data=b"\0\x10\0\x20")
    assert "0 is white" in error_of(lambda: decode(white))
    black = tiff(2, 1, bits=16, photometric=1, data=b"\0\x10\0\x20")
    np.testing.assert_array_equal(pixels(black)[0, :, 0], [0x10, 0x20])


def test_32_bit_float_is_refused_with_a_remedy() -> None:
    content = encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF")
    assert "save them as 16-bit grey" in error_of(lambda: decode(content))


# Orientation

MARK = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
UPRIGHT = {
    1: MARK,
    2: MARK[:, ::-1],
    3: MARK[::-1, ::-1],
    4: MARK[::-1],
    5: MARK.T,
    6: np.rot90(MARK, -1),
    7: MARK[::-1, ::-1].T,
    8: np.rot90(MARK),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied_once(file_format: str, orientation: int) -> None:
    big = np.kron(MARK, np.ones((16, 16), dtype=np.uint8))  # whole JPEG blocks
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    content = encoded(Image.fromarray(big).convert("RGB"), file_format, exif=exif, **options)
    expected = np.kron(UPRIGHT[orientation], np.ones((16, 16), dtype=np.uint8))
    got = pixels(content)
    assert np.abs(got[:, :, 0].astype(int) - expected).max() <= 2
    with Image.open(io.BytesIO(content)) as opened:  # the other door, and a second time through it
        np.testing.assert_array_equal(np.asarray(as_image(opened)), got)
    np.testing.assert_array_equal(np.asarray(as_image(decode(content))), got)


def test_an_exif_block_that_cannot_be_read_says_nothing() -> None:
    content = encoded(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0rubbish")
    np.testing.assert_array_equal(pixels(content), COLOUR)


# Many images in one file


def test_the_first_of_many_counts() -> None:
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    for file_format, options in (("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})):
        content = encoded(first, file_format, save_all=True, append_images=[second], **options)
        np.testing.assert_array_equal(pixels(content), COLOUR)


# Refusals


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused(
    file_format: str, kept: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encoded(noise, file_format)
    path = tmp_path / f"cut 'here'.{file_format.lower()}"
    path.write_bytes(content[: int(len(content) * kept)])
    assert path.name in error_of(lambda: decode(path))
    error_of(lambda: decode(path.read_bytes()))
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    content = bytearray(encoded(Image.fromarray(COLOUR), "PNG"))
    content[content.index(b"IDAT") + 20] ^= 1
    error_of(lambda: decode(bytes(content)))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    assert "0 bytes" in error_of(lambda: decode(b""))
    (tmp_path / "empty.png").touch()
    text = error_of(lambda: decode(tmp_path / "empty.png"))
    assert "0 bytes" in text
    assert "empty.png" in text
    (tmp_path / "notes.jpg").write_text("no picture")
    assert re.search(
        r"notes\.jpg, got a file that begins with b'no pictu'",
        error_of(lambda: decode(tmp_path / "notes.jpg")),
    )
    (tmp_path / "x.png").mkdir()
    assert "a directory" in error_of(lambda: decode(tmp_path / "x.png"))
    assert "No such file" in error_of(lambda: decode(tmp_path / "missing.png"))
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    assert "dangling.png" in error_of(lambda: decode(tmp_path / "dangling.png"))
    os.mkfifo(tmp_path / "pipe.png")
    assert "a pipe" in error_of(lambda: decode(tmp_path / "pipe.png"))
    assert "null" in error_of(lambda: decode(tmp_path / "nul\0.png"))


def test_a_missing_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(b"x")

    def refuse(self: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    text = error_of(lambda: decode(path))
    assert "locked.png, got Permission denied; check" in text


def test_other_formats_never_reach_a_parser() -> None:
    for file_format in ("GIF", "PPM", "TGA", "PCX", "ICO", "JPEG2000"):
        content = encoded(Image.fromarray(COLOUR), file_format)
        assert "begins with" in error_of(partial(decode, content))


def test_the_suffix_does_not_matter_but_the_content_does(tmp_path: Path) -> None:
    (tmp_path / "really.png").write_bytes(encoded(Image.fromarray(GREY), "BMP"))
    np.testing.assert_array_equal(pixels(tmp_path / "really.png"), grey3(GREY))
    assert {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"} == SUFFIXES


def test_names_of_every_kind_work(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(COLOUR), "PNG")
    for name in ("two words.png", 'it\'s "q".png', "кабель-線.PNG", os.fsdecode(b"not-utf8-\xff.png")):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(pixels(tmp_path / name), COLOUR)
        (tmp_path / name).write_bytes(content[:40])
        error_of(partial(decode, tmp_path / name)).encode()  # it can be printed


# Sizes


def test_a_bomb_is_refused_by_its_header() -> None:
    # 100 megapixels of one bit: small on disk, and the rows are never asked for
    content = png(10000, 10000, 1, 0, b"not even pixels")
    text = error_of(lambda: decode(content))
    assert text.startswith("expected at most 64 megapixels, got 10000x10000 = 100.0 megapixels in the given")


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])
def test_sizes_around_pillows_own_limits_give_the_same_line(
    side: int, recwarn: pytest.WarningsRecorder
) -> None:
    text = error_of(lambda: decode(png(side, side, 1, 0, b"")))
    assert f"{side}x{side}" in text
    assert not recwarn.list


def test_the_limit_is_a_parameter() -> None:
    content = encoded(Image.fromarray(COLOUR), "PNG")
    assert decode(content, max_pixels=30).size == (5, 6)
    assert "5x6" in error_of(lambda: decode(content, max_pixels=29))
    assert "5x6" in error_of(lambda: as_image(COLOUR, max_pixels=29))
    assert "5x6" in error_of(lambda: as_image(Image.fromarray(COLOUR), max_pixels=29))
    assert MAX_PIXELS == 64_000_000


@pytest.mark.parametrize("kind", [Image.DecompressionBombError, Image.DecompressionBombWarning])
def test_pillows_own_alarms_become_image_errors(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def alarm(self: object) -> None:
        raise kind("exceeds limit")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", alarm)
    assert "a sensible size" in error_of(lambda: decode(encoded(Image.new("L", (2, 2)), "BMP")))


# In memory


def test_arrays_of_every_kind() -> None:
    for array, expected in (
        (GREY, grey3(GREY)),
        (GREY[:, :, None], grey3(GREY)),
        (COLOUR, COLOUR),
        (COLOUR[::-1, ::2], COLOUR[::-1, ::2]),
        (np.dstack([COLOUR, GREY]), over_black(COLOUR, GREY)),
        (DEEP, grey3((DEEP >> 8).astype(np.uint8))),
        (DEEP.astype(">u2"), grey3((DEEP >> 8).astype(np.uint8))),
        (COLOUR / 255, COLOUR),
        ((COLOUR / 255).astype(np.float16), COLOUR),
    ):
        np.testing.assert_array_equal(np.asarray(as_image(array)), expected)


def test_tensors_of_every_kind() -> None:
    tensor = torch.from_numpy(COLOUR).permute(2, 0, 1)
    for image, expected in (
        (tensor, COLOUR),
        (tensor[:1], grey3(COLOUR[:, :, 0])),
        (tensor.float() / 255, COLOUR),
        (tensor.double() / 255, COLOUR),
        ((tensor.float() / 255).requires_grad_(), COLOUR),
    ):
        np.testing.assert_array_equal(np.asarray(as_image(image)), expected)


@given(st.integers(0, 255), st.sampled_from([np.float16, np.float32, np.float64]))
def test_floats_of_bytes_come_back_exactly(value: int, dtype: type[np.floating[Any]]) -> None:
    array = np.full((1, 1), value / 255, dtype=dtype)
    assert as_image(array).getpixel((0, 0)) == (value,) * 3


def test_paths_strings_and_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(np.asarray(as_image(source)), COLOUR)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_an_image_outlives_its_file(file_format: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(encoded(Image.fromarray(COLOUR), file_format))
    image = decode(file)
    expected = np.array(decode(file.read_bytes()))
    file.write_bytes(bytes(file.stat().st_size))
    assert np.array_equal(np.array(image), expected)
    assert np.array_equal(np.array(image.copy().resize((5, 6))), expected)
    image.putpixel((0, 0), (1, 2, 3))
    assert (image.mode, image.info, image.getpixel((0, 0))) == ("RGB", {}, (1, 2, 3))


def test_nothing_is_shared_with_the_caller() -> None:
    for start in (COLOUR.copy(), GREY.copy(), np.dstack([COLOUR, GREY])):
        array = start.copy()
        image = as_image(array)
        before = np.array(image)
        array[:] = 0
        np.testing.assert_array_equal(np.asarray(image), before)
    picture = Image.fromarray(COLOUR)
    image = as_image(picture)
    picture.paste((0, 0, 0), (0, 0, 5, 6))
    np.testing.assert_array_equal(np.asarray(image), COLOUR)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (np.zeros((3, 8, 8), dtype=np.uint8), "shape (3, 8, 8)"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), "one image at a time"),
        (np.zeros((8, 8), dtype=np.int64), "int64"),
        (np.zeros((8, 8), dtype=bool), "bool"),
        (np.zeros((0, 8), dtype=np.uint8), "at least one pixel"),
        (np.full((2, 2), np.nan), "nan"),
        (np.array([[0.0, np.inf]]), "inf"),
        (np.array([[0.0, 255.0]]), "0 to 255"),
        (np.array([[-0.1, 0.5]]), "-0.1 to 0.5"),
        (torch.zeros(8, 8, 3), "channels first"),
        (torch.zeros(2, 3, 8, 8), "one image at a time"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((1, 2, 2), float("nan")), "nan"),
        (torch.zeros(3, 2, 2, device="meta"), "meta"),
        (Image.new("F", (2, 2)), "32-bit float"),
        (Image.new("La", (2, 2)), "La"),
        ([[1, 2]], "got list"),
        (None, "got NoneType"),
    ],
)
def test_other_things_in_memory_are_refused(source: Any, told: str) -> None:
    assert told in error_of(lambda: as_image(source))


def test_a_lazy_pil_image_that_is_broken_is_an_image_error() -> None:
    content = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")
    with Image.open(io.BytesIO(content[:2000])) as image:
        error_of(lambda: as_image(image))
