"""The README's picture: a made-up product, a model of it, and one of its defects explained.

    python -m benchmarks.picture --output docs/query.png

The product is a drilled and brushed metal plate, drawn by this file, so that the picture carries no
dataset's licence. The backbone is EfficientNet-Lite0 with its ImageNet weights (extra `demo`).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from cfa_index import (
    GoodImages,
    ModelBundle,
    build,
    load_backbone,
    preset,
    query,
    query_picture,
    save_picture,
    set_threads,
)

_SIDE_PX = 300
_HOLES = 4


def plate(seed: int, *, scratched: bool = False) -> Image.Image:
    """A plate with 4 x 4 holes under slightly different light and position; scratched on request."""
    rng = np.random.default_rng(seed)
    brushed = np.repeat(rng.normal(0, 9, (_SIDE_PX, 1)), _SIDE_PX, axis=1) + rng.normal(
        0, 5, (_SIDE_PX, _SIDE_PX)
    )
    light = np.linspace(-12, 12, _SIDE_PX)[None, :] * rng.uniform(0.5, 1.5)
    grey = np.clip(150 + rng.uniform(-8, 8) + brushed + light, 0, 255).astype(np.uint8)
    image = Image.fromarray(grey).filter(ImageFilter.GaussianBlur(0.8)).convert("RGB")
    draw = ImageDraw.Draw(image)
    pitch = _SIDE_PX / _HOLES
    shift = rng.uniform(-4, 4, 2)
    for row in range(_HOLES):
        for column in range(_HOLES):
            x, y = (column + 0.5) * pitch + shift[0], (row + 0.5) * pitch + shift[1]
            draw.ellipse(
                (x - 17, y - 17, x + 17, y + 17), fill=(40, 42, 46), outline=(205, 205, 210), width=3
            )
    if scratched:
        draw.line([(96, 72), (128, 108), (138, 150), (164, 182)], fill=(228, 228, 232), width=3)
        draw.ellipse((212, 214, 226, 226), fill=(96, 84, 70))
    return image


def main() -> None:
    """Draw, build, query, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/query.png"))
    parser.add_argument("--images", type=int, default=60)
    given = parser.parse_args()
    set_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plate(10_000, scratched=True).save(folder / "scratched.png")
        result = query(plate_model(folder, given.images), folder / "scratched.png", patches=3)
        save_picture(query_picture(result, footer="Made-up images (benchmarks/picture.py)"), given.output)
        print(f"score {result.verdict.score:.3g}, threshold {result.threshold:.3g}: {given.output}")


def plate_model(folder: Path, images: int) -> ModelBundle:
    """A model of so many plates, all of it below a folder."""
    base = preset("recommended")
    spec = replace(
        base,
        features=replace(base.features, backbone="efficientnet_lite0"),
        bank=replace(base.bank, size=1024),
    )
    normals = folder / "plates"
    normals.mkdir()
    files = [normals / f"plate_{number:03d}.png" for number in range(images)]
    for number, file in enumerate(files):
        plate(number).save(file)
    report = build(
        GoodImages(category="plate", source=normals, images=files),
        spec,
        backbone=load_backbone(spec.features.backbone, spec.features.strides),
        models_dir=folder / "models",
        features_dir=folder / "features",
        device=torch.device("cpu"),
    )
    return ModelBundle.load(report.path)


if __name__ == "__main__":
    main()
