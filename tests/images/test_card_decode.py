"""JPEGs left for a card: what goes there, what stays on the host, and how near the pixels are."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import torch
from fake_card import fake_card
from made_up import Workplace, cfa
from numpy.typing import NDArray
from PIL import Image
from test_score_on_card import on, scored

import cfa_index.images.card_decode as card_decode
from benchmarks.card_pixels import colourful, colours_repeated, encoded, on_host as square_on_host
from cfa_index.errors import CardMemoryError, DeviceError, ImageError, OutputError, SpecError
from cfa_index.images import CardDecoder, Jpeg, Views, read_entry, read_for_card
from cfa_index.places import Entry, LocalPlace
from cfa_index.specs import FeatureSpec, Geometry

CPU = torch.device("cpu")
FEATURES = FeatureSpec(size_px=64)
LEVELS_OFF = 1
"""Grey levels between torch's resize and Pillow's, which rounds between its two passes."""


def entry(path: Path) -> Entry:
    return Entry(path=os.fsencode(path.name), size=path.stat().st_size, mtime_ns=0)


def read(path: Path, features: FeatureSpec = FEATURES, **options: Any) -> Jpeg | Views | ImageError | str:
    return read_for_card(LocalPlace(path.parent), entry(path), features, **options)


def on_host(path: Path, features: FeatureSpec = FEATURES) -> NDArray[np.uint8]:
    found = read_entry(LocalPlace(path.parent), entry(path), features)
    assert isinstance(found, Views), found
    square: NDArray[np.uint8] = found.pixels[0]
    return square


def write(path: Path, *, width: int = 150, height: int = 90, mode: str = "RGB", **options: Any) -> Path:
    """A photo: colours that change slowly, and an edge."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [120 + 90 * np.sin(x / (9 + 4 * c) + y / (13 - 3 * c)) for c in range(3)]
    pixels = np.stack(waves, axis=2).astype(np.uint8)
    pixels[20:50, 30:70] = (240, 30, 20)
    Image.fromarray(pixels).convert(mode).save(path, "JPEG", quality=90, **options)
    return path


def off(got: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    assert got.shape == expected.shape
    return int(np.abs(got.astype(int) - expected).max())


@pytest.mark.parametrize("geometry", ["whole", "crop", "letterbox"])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"mode": "L"}],
    ids=["4:4:4", "4:2:0", "progressive", "grey"],
)
def test_a_plain_jpeg_has_the_hosts_square_within_a_grey_level(
    tmp_path: Path, geometry: Geometry, options: dict[str, Any]
) -> None:
    features = FeatureSpec(size_px=64, geometry=geometry)
    path = write(tmp_path / "a.jpg", **options)
    jpeg = read(path, features)
    assert isinstance(jpeg, Jpeg)
    (square,) = CardDecoder(features, CPU).squares([jpeg])
    assert square is not None
    expected = read_entry(LocalPlace(tmp_path), entry(path), features)
    assert isinstance(expected, Views)
    assert (square.dtype, jpeg.frames) == (torch.uint8, expected.frames)
    assert off(square.numpy(), expected.pixels[0]) <= LEVELS_OFF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_as_on_the_host(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "turned.jpg", exif=exif)
    jpeg = read(path)
    assert isinstance(jpeg, Jpeg)
    assert jpeg.orientation == orientation
    (square,) = CardDecoder(FEATURES, CPU).squares([jpeg])
    assert square is not None
    assert off(square.numpy(), on_host(path)) <= LEVELS_OFF


def rgb_components(content: bytes) -> bytes:
    """A JPEG whose components are called R, G and B, so that they are: no Y, Cb and Cr."""
    at = content.index(b"\xff\xc0")
    changed = bytearray(content)
    for number, name in enumerate(b"RGB"):
        changed[at + 10 + 3 * number] = name
    at = content.index(b"\xff\xda")
    for number, name in enumerate(b"RGB"):
        changed[at + 5 + 2 * number] = name
    start = content.index(b"\xff\xe0")  # and without JFIF, which says that they are Y, Cb and Cr
    length = int.from_bytes(content[start + 2 : start + 4], "big")
    del changed[start : start + 2 + length]
    return bytes(changed)


def test_what_is_no_plain_jpeg_stays_on_the_host(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jpg").read_bytes()
    Image.fromarray(made_up.texture(1)).save(tmp_path / "a.png")
    (tmp_path / "after.jpg").write_bytes(plain + b"made by a camera")
    (tmp_path / "rgb.jpg").write_bytes(rgb_components(plain))
    write(tmp_path / "cmyk.jpg", mode="CMYK")
    for name in ("a.png", "after.jpg", "rgb.jpg", "cmyk.jpg"):
        found = read(tmp_path / name)
        assert isinstance(found, Views), name
        assert np.array_equal(found.pixels[0], on_host(tmp_path / name))


def test_what_is_refused_is_refused_in_the_same_words(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jpg").read_bytes()
    for name, content in {
        "cut.jpg": plain[: len(plain) // 2],
        "empty.jpg": b"",
        "words.jpg": b"no image at all",
        "head.jpg": plain[:20],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        found, expected = read(path), read_entry(LocalPlace(tmp_path), entry(path), FEATURES)
        assert isinstance(found, ImageError), name
        assert str(found) == str(expected)
    assert "megapixels" in str(read(tmp_path / "plain.jpg", max_pixels=100))
    listed = Entry(path=b"x", size=0, mtime_ns=0, error="not listed")
    assert read_for_card(LocalPlace(tmp_path), listed, FEATURES) == "not listed"


def test_one_that_the_decoder_refuses_leaves_the_others_alone(tmp_path: Path) -> None:
    jpegs = [read(write(tmp_path / f"{number}.jpg")) for number in range(3)]
    good, bad, other = (jpeg for jpeg in jpegs if isinstance(jpeg, Jpeg))
    object.__setattr__(bad, "content", bad.content[:200])
    squares = CardDecoder(FEATURES, CPU).squares([good, bad, other])
    assert [square is None for square in squares] == [False, True, False]


def test_few_pixels_are_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_decode, "_MOST_PIXELS", 2 * 150 * 90)
    groups: list[int] = []
    real = CardDecoder._decoded

    def counted(self: CardDecoder, group: list[Jpeg]) -> list[torch.Tensor]:
        groups.append(len(group))
        return real(self, group)

    monkeypatch.setattr(CardDecoder, "_decoded", counted)
    jpegs = [read(write(tmp_path / f"{number}.jpg")) for number in range(5)]
    jpegs.insert(1, read(write(tmp_path / "large.jpg", width=300, height=200)))
    squares = CardDecoder(FEATURES, CPU).squares([jpeg for jpeg in jpegs if isinstance(jpeg, Jpeg)])
    assert (groups, len(squares)) == ([1, 1, 2, 2], 6)


def test_a_torchvision_without_nvjpeg_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> list[torch.Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(CardDecoder, "_decoded", failing)
    jpeg = read(write(tmp_path / "a.jpg"))
    assert isinstance(jpeg, Jpeg)
    with pytest.raises(DeviceError, match=r"torchvision with nvJPEG.*--decode host"):
        CardDecoder(FEATURES, CPU).squares([jpeg])


def test_memory_that_runs_out_is_not_taken_for_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(CardDecoder, "_decoded", failing)
    jpeg = read(write(tmp_path / "a.jpg"))
    assert isinstance(jpeg, Jpeg)
    with pytest.raises(CardMemoryError, match=r"decoding 1 images.*2\.00 GiB asked for"):
        CardDecoder(FEATURES, torch.device("meta", 0)).squares([jpeg])


def test_the_wheel_has_the_operator_that_a_card_would_run() -> None:
    import torchvision.io  # noqa: F401 - loads the operators

    schema = str(torch.ops.image.decode_jpegs_cuda.default._schema)
    assert schema == "image::decode_jpegs_cuda(Tensor[] encoded_images, int mode, Device device) -> Tensor[]"


@pytest.mark.gpu
def test_nvjpeg_decodes_grey_and_whole_colour_like_the_host(tmp_path: Path) -> None:
    """4:2:0 is left out: its colour samples are repeated and not interpolated."""
    paths = [write(tmp_path / "c.jpg", subsampling=0), write(tmp_path / "g.jpg", mode="L")]
    jpegs = [jpeg for jpeg in map(read, paths) if isinstance(jpeg, Jpeg)]
    for path, square in zip(
        paths, CardDecoder(FEATURES, torch.device("cuda", 0)).squares(jpegs), strict=True
    ):
        assert square is not None
        assert off(square.cpu().numpy(), on_host(path)) <= LEVELS_OFF + 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return made_up.built_workplace(tmp_path_factory.mktemp("decoded"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """JPEGs, a PNG, one that is cut, and one that only the host can decode."""
    folder = made_up.write_good(tmp_path / "in", 2)
    for number in range(4):
        Image.fromarray(made_up.texture(number, width=90, height=80)).save(
            folder / f"{number}.jpg", quality=95
        )
    (folder / "cut.jpg").write_bytes((folder / "1.jpg").read_bytes()[:900])
    return folder


@pytest.mark.parametrize("device", ["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_folder_decoded_on_a_card_has_about_the_hosts_scores(
    place: Workplace, folder: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored(on("cpu", place), folder, tmp_path / "host")
    if device == "cuda":
        rows = scored(on("cuda", place), folder, tmp_path / "card", decode="card")
    else:
        refused = CardDecoder._decoded

        def decoded(self: CardDecoder, group: list[Jpeg]) -> list[torch.Tensor]:
            if any(jpeg.content == (folder / "2.jpg").read_bytes() for jpeg in group):
                raise RuntimeError("nvJPEG does not know this one")
            return refused(self, group)

        monkeypatch.setattr(CardDecoder, "_decoded", decoded)
        with fake_card() as card:
            bundle = on("cuda", place)
            card.to_host.clear()
            rows = scored(bundle, folder, tmp_path / "card", decode="card")
            assert card.to_host == [(4,)] * 2
            assert not card.waits
            with pytest.raises(OutputError, match="decode 'card' then, 'host' now"):
                scored(bundle, folder, tmp_path / "card")
        settings = json.loads((tmp_path / "host" / "run.json").read_text())
        assert settings.pop("decode") == "host"
        (tmp_path / "host" / "run.json").write_text(json.dumps(settings))  # as an older run wrote it
        assert scored(on("cpu", place), folder, tmp_path / "host") == expected
    for row, other in zip(rows, expected, strict=True):
        score = other["score"] and pytest.approx(other["score"], rel=0.05)
        assert row == {**other, "score": score}


def test_where_a_card_cannot_decode_it_is_said(
    place: Workplace, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match="a card that decodes"):
        scored(on("cpu", place), folder, tmp_path / "out", decode="card")
    with pytest.raises(SpecError, match="decode to be one of host, card, got 'gpu'"):
        scored(on("cpu", place), folder, tmp_path / "out", decode="gpu")
    command = ("score", folder, "-c", "weave", *place.model, "-o", tmp_path / "out", "--decode", "card")
    assert "a card that decodes" in cfa(*command, "--device", "cpu").error_line
    assert "--decode host with --engine ray" in cfa(*command, "--device", "cpu", "--engine", "ray").error_line
    tiled = made_up.workplace(tmp_path / "tiled", train=8)
    assert tiled.build("--tile", "64", "--overlap", "16").code == 0
    with fake_card(), pytest.raises(SpecError, match="without tiles"):
        scored(on("cuda", tiled), folder, tmp_path / "out", decode="card")
    assert not (tmp_path / "out").exists()


def test_a_reading_process_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from cfa_index.images import read_for_card; read_for_card; "
        "assert not {'torch', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_jpeg_is_read_whole_from_memory_too(tmp_path: Path) -> None:
    content = write(tmp_path / "a.jpg").read_bytes()

    class Bucket(LocalPlace):
        def source(self, _path: bytes) -> bytes:  # type: ignore[override]  # as a bucket does
            return content

    jpeg = read_for_card(Bucket(tmp_path), entry(tmp_path / "a.jpg"), FEATURES)
    assert isinstance(jpeg, Jpeg)
    assert jpeg.content == content
    assert isinstance(jpeg.on_host(), Views)
    assert io.BytesIO(jpeg.content).read(2) == b"\xff\xd8"


def test_the_benchmark_repeats_colours_and_changes_nothing_else() -> None:
    """Of what docs/precision.md says: grey stays as it is, edges between colours do not."""
    colour = colourful(0, 160)
    grey = encoded(colour.convert("L").convert("RGB"))
    assert off(colours_repeated(grey, FEATURES), square_on_host(grey, FEATURES)) <= LEVELS_OFF
    assert off(colours_repeated(encoded(colour), FEATURES), square_on_host(encoded(colour), FEATURES)) > 3
