"""JPEGs decoded on the card beside a core of the host: whether `--decode card` pays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu_clock import Budget, Clock
from benchmarks.stages import made_up_image
from cfa_index import CardDecoder, FeatureSpec, Jpeg, decode, frame_of, network_pixels
from cfa_index.errors import ImageError


@dataclass(frozen=True, kw_only=True)
class DecodeRow:
    """JPEGs of one size, from bytes in memory to the network's squares.

    Attributes:
        side_px: of the images, which are square.
        mean_bytes: of a file.
        images: decoded in one call.
        on_card: images a second where the network runs.
        a_core: images a second of one thread of the host.
    """

    side_px: int
    mean_bytes: int
    images: int
    on_card: float
    a_core: float

    @property
    def cores(self) -> float:
        """Of the host, that do as much."""
        return self.on_card / self.a_core


def measure_decoding(
    clock: Clock, budget: Budget, features: FeatureSpec, sides_px: Sequence[int], *, images: int
) -> list[DecodeRow]:
    """Made-up images of some sizes, both ways in turn.

    Raises:
        DeviceError: torchvision has no nvJPEG.
    """
    rows = []
    for side in sides_px:
        if not budget.allows(f"{side} px"):
            continue
        jpegs = [_encoded(number, side, features) for number in range(images)]
        decoder = CardDecoder(features, clock.device)
        times = clock.in_turn(
            {"card": partial(decoder.squares, jpegs), "core": partial(_on_host, jpegs, features)}
        )
        rows.append(
            DecodeRow(
                side_px=side,
                mean_bytes=sum(len(jpeg.content) for jpeg in jpegs) // images,
                images=images,
                on_card=times["card"].rate(images),
                a_core=times["core"].rate(images),
            )
        )
    return rows


def _encoded(number: int, side: int, features: FeatureSpec) -> Jpeg:
    file = io.BytesIO()
    made_up_image(number, side).save(file, "JPEG", quality=90)
    return Jpeg(
        content=file.getvalue(),
        orientation=1,
        frame=frame_of(side, side, features),
        on_host=partial(
            ImageError, expected="a JPEG that a card takes", got="one refused", remedy="look at it"
        ),
    )


def _on_host(jpegs: Sequence[Jpeg], features: FeatureSpec) -> None:
    for jpeg in jpegs:
        network_pixels(decode(jpeg.content), features)


def decode_table(rows: Sequence[DecodeRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| JPEG | kB | on the card, images/s | a core, images/s | cores that do as much |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.side_px} px | {row.mean_bytes / 1000:.0f} | {row.on_card:.4g} | {row.a_core:.4g} | {row.cores:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)
