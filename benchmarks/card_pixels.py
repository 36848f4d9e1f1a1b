"""What `score --decode card` does to pixels and scores, as far as a machine without a card can tell.

    python -m benchmarks.card_pixels [--images 10] [--threads 2]

Two things differ on a card. Its resize is torch's: torchvision's decoder on the CPU, whose pixels are Pillow's, with
the resize of `images/card_decode.py`. And nvJPEG repeats the colour samples of a 4:2:0 file where libjpeg
interpolates: the samples are those of the file (a decoder at half the size has nothing to interpolate), repeated, the
rest is the host's. A model is built of as many other images, EfficientNet-Lite0 with the recommended settings.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.machine import describe
from benchmarks.stages import made_up_image
from cfa_index import (
    CardDecoder,
    FeatureSpec,
    GoodImages,
    Jpeg,
    ModelBundle,
    build,
    decode,
    frame_of,
    load_backbone,
    network_pixels,
    preset,
    set_threads,
    split_cells,
)
from cfa_index.errors import ImageError

Pixels = NDArray[np.uint8]
CPU = torch.device("cpu")


def colourful(number: int, side: int) -> Image.Image:
    """Areas of one colour each: a channel of four values for each of three made-up images."""
    channels = [made_up_image(3 * number + channel, side).getchannel(0) for channel in range(3)]
    return ImageOps.posterize(Image.merge("RGB", channels), 2)


def encoded(image: Image.Image) -> bytes:
    """A JPEG of quality 90, colours 4:2:0."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=2)
    return file.getvalue()


def on_host(content: bytes, features: FeatureSpec) -> Pixels:
    """The network's square (3, S, S) as `score` makes it."""
    found: Pixels = network_pixels(decode(content), features)[0].numpy()
    return found


def resized_by_torch(content: bytes, features: FeatureSpec) -> Pixels:
    """The same pixels, resized as on a card."""
    width, height = decode(content).size
    jpeg = Jpeg(
        content=content,
        orientation=1,
        frame=frame_of(width, height, features),
        on_host=partial(ImageError, expected="a JPEG", got="one refused", remedy="look at it"),
    )
    (square,) = CardDecoder(features, CPU).squares([jpeg])
    assert square is not None, "the decoder takes what was just encoded"
    found: Pixels = square.numpy()
    return found


def colours_repeated(content: bytes, features: FeatureSpec) -> Pixels:
    """Each colour sample of a 4:2:0 file for four pixels, resized as on the host."""
    whole, half = (Image.open(io.BytesIO(content)) for _ in range(2))
    whole.draft("YCbCr", whole.size)
    half.draft("YCbCr", (whole.width // 2, whole.height // 2))
    brightness = np.asarray(whole)[..., :1]
    colours = np.asarray(half)[..., 1:].repeat(2, axis=0).repeat(2, axis=1)
    assert brightness.shape[:2] == colours.shape[:2], "even sides"
    repeated = Image.fromarray(np.concatenate([brightness, colours], axis=2), "YCbCr").convert("RGB")
    found: Pixels = network_pixels(repeated, features)[0].numpy()
    return found


def model_of(images: Sequence[bytes], folder: Path) -> ModelBundle:
    """Built of some files."""
    source = folder / "good"
    source.mkdir(parents=True)
    files = [source / f"{number:03d}.jpg" for number in range(len(images))]
    for file, content in zip(files, images, strict=True):
        file.write_bytes(content)
    base = preset("recommended")
    spec = replace(base, features=replace(base.features, backbone="efficientnet_lite0"))
    backbone = load_backbone(spec.features.backbone, spec.features.strides, size_px=spec.features.size_px)
    built = build(
        GoodImages(category="images", source=source, images=files),
        spec,
        backbone=backbone,
        models_dir=folder / "models",
        features_dir=folder / "features",
        device=CPU,
    )
    return ModelBundle.load(built.path)


def compared(
    bundle: ModelBundle, images: Sequence[bytes], make: Callable[[bytes, FeatureSpec], Pixels]
) -> tuple[int, float, float, float]:
    """Largest and mean difference of pixels, in grey levels; median and largest of scores, relative."""
    features = bundle.manifest.spec.features
    host, other = (np.stack([way(one, features) for one in images]) for way in (on_host, make))
    frames = [frame_of(*decode(one).size, features) for one in images]
    before, after = (
        bundle.scorer.score_pixels(torch.from_numpy(pixels), frames).scores.numpy()
        for pixels in (host, other)
    )
    off, moved = np.abs(host.astype(int) - other), np.abs(after / before - 1)
    return int(off.max()), float(off.mean()), float(np.median(moved)), float(moved.max())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10, help="of each kind")
    parser.add_argument("--sides", type=int, nargs="+", default=[300, 1024, 2048], help="even numbers")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    set_threads(given.threads)
    print(describe(0, images=given.images, quality=90))
    print("| images | difference | largest | mean, grey levels | scores, median | largest |")
    print("|---|---|---|---|---|---|")
    cells = split_cells("mono").train_good[: 2 * given.images]
    kinds = {"ELPV cells, grey, 300 px": [encoded(decode(file)) for file in cells]}
    for side in given.sides:
        kinds[f"made-up colour, {side:,} px"] = [
            encoded(colourful(number, side)) for number in range(2 * given.images)
        ]
    for kind, images in kinds.items():
        with tempfile.TemporaryDirectory() as name:
            bundle = model_of(images[given.images :], Path(name))
            differences = {"resized by torch": resized_by_torch, "colours repeated": colours_repeated}
            if "grey" in kind:
                del differences["colours repeated"]
            for difference, make in differences.items():
                largest, mean, median, most = compared(bundle, images[: given.images], make)
                row = f"| {kind} | {difference} | {largest} | {mean:.2f} | {median:.2%} | {most:.2%} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
