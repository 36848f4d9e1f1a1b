"""The README's picture of a report: a folder of made-up plates, scored, and its page as a browser shows it.

    python -m benchmarks.report_picture --output docs/report.png

A few of the plates are scratched, stained, dented or lack a hole, and two files are broken. The page is opened
in the system's chromium by playwright (extra `test`).
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import sync_playwright

from benchmarks.picture import plate, plate_model
from cfa_index import save_picture, score_folder, set_threads

_LINES = ("line 1/early shift", "line 1/late shift", "line 2/early shift", "line 2/late shift")
_FIRST_SEED = 20_000
_COLOURS = 256
_BROKEN = 2


def flawed(seed: int) -> Image.Image:
    """A plate with one defect, its kind, place and strength drawn from the seed."""
    rng = np.random.default_rng(seed)
    image = plate(seed)
    draw = ImageDraw.Draw(image)
    x, y = (float(at) for at in rng.uniform(50, 250, 2))
    kind = ("scratch", "stain", "dent", "hole")[seed % 4]
    if kind == "scratch":
        steps = rng.normal((18, 14), 14, (5, 2)).cumsum(axis=0)
        draw.line([(x - 40 + dx, y - 40 + dy) for dx, dy in steps], fill=(226, 226, 230), width=3)
    elif kind == "stain":
        spot = Image.new("L", image.size)
        width, height = rng.uniform(14, 34, 2)
        ImageDraw.Draw(spot).ellipse((x - width, y - height, x + width, y + height), fill=170)
        image.paste((92, 78, 58), mask=spot.filter(ImageFilter.GaussianBlur(4)))
    elif kind == "dent":
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(98, 98, 104))
        draw.arc((x - 9, y - 9, x + 9, y + 9), 200, 340, fill=(225, 225, 228), width=3)
    else:
        left, top = (75 * int(at) + 12 for at in rng.integers(0, 4, 2))
        there = image.crop((0, 140, 50, 190)) if left > 100 else image.crop((240, 140, 290, 190))
        image.paste(there.rotate(180), (left, top))
    return image


def write_shift(folder: Path, images: int, *, flawed_every: int) -> None:
    """So many plates over four folders, and two files that are no images."""
    for number in range(images):
        path = folder / _LINES[number % 4] / f"plate_{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = _FIRST_SEED + number
        (flawed(number // flawed_every) if number % flawed_every == 0 else plate(seed)).save(path)
    (folder / _LINES[0] / "plate_9998.png").write_bytes(b"")
    (folder / _LINES[3] / "plate_9999.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """A page as chromium shows it, in few colours: a picture for a README."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": height})
        opened.goto(page.as_uri())
        opened.wait_for_load_state("networkidle")
        content = opened.screenshot()
        browser.close()
    with Image.open(io.BytesIO(content)) as taken:
        return taken.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    """Draw, build, score, open, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--images", type=int, default=120, help="that are scored")
    parser.add_argument("--keep", type=Path, help="also copy the report here")
    given = parser.parse_args()
    set_threads(2)
    with tempfile.TemporaryDirectory(prefix="plates-") as name:
        folder = Path(name)
        source, target = folder / "night shift", folder / "scores"
        write_shift(source, given.images, flawed_every=12)
        bundle = plate_model(folder, 100)
        scored = score_folder(
            bundle, source, target, gallery=60, credit="Made-up images (benchmarks/report_picture.py)"
        )
        save_picture(screenshot(target / "report.html", 1240, 980), given.output)
        if given.keep is not None:
            shutil.copytree(target, given.keep, dirs_exist_ok=True)
        size_kb = given.output.stat().st_size / 1000
        print(f"{scored.images} images, {scored.anomalous} anomalous: {given.output}, {size_kb:.0f} kB")


if __name__ == "__main__":
    main()
