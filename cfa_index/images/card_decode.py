"""JPEGs decoded where the network runs: nvJPEG on a card makes their pixels.

They differ from the host's. The resize is torch's, within a grey level or two of Pillow's. And nvJPEG, as torchvision
calls it, repeats the colour samples of a JPEG that stores fewer of them than of brightness (4:2:0), where the host's
decoder interpolates (sglang #34163): edges between colours differ, the more the less the image is shrunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cfa_index.card_memory import card_memory, has_run_out
from cfa_index.errors import DeviceError
from cfa_index.footprint import SMALLER_BATCH
from cfa_index.images.decode import MAX_PIXELS
from cfa_index.images.frame import plan_of
from cfa_index.images.jpegs import Jpeg
from cfa_index.specs import FeatureSpec
from cfa_index.transfers import Aside, Uploads

_MOST_PIXELS = MAX_PIXELS
"""Of the images that are decoded in one call."""
_RGB = 3
"""torchvision's ImageReadMode.RGB."""


class CardDecoder:
    """Makes the network's squares of JPEGs on a device.

    Args:
        features: geometry and size_px, without tiles.
        device: a card; on any other torchvision's own decoder makes the pixels.
    """

    def __init__(self, features: FeatureSpec, device: torch.device) -> None:
        self._features = features
        self._device = device
        self._aside = Aside(device)
        self._uploads = Uploads(device)

    def squares(self, jpegs: Sequence[Jpeg]) -> list[Tensor | None]:
        """(3, S, S) uint8 of each on the device; None of one that the decoder refuses.

        The host waits until they are decoded, though not for anything else that the card is at work on. A few
        images are decoded at a time, so that memory is bounded.

        Raises:
            DeviceError: torchvision has no nvJPEG.
            CardMemoryError: the card's memory has run out.
        """
        found: list[Tensor | None] = []
        with card_memory(self._device, f"decoding {len(jpegs)} images", lower=SMALLER_BATCH):
            for group in _groups(jpegs):
                made = self._made(group)
                if made is None and len(group) > 1:  # one of them, but the decoder does not say which
                    for jpeg in group:
                        found += self._made([jpeg]) or [None]
                else:
                    found += made or [None]
        return found

    def with_squares(self, pixels: Tensor, squares: dict[int, Tensor]) -> Tensor:
        """A batch (B, 3, S, S) of the host on the device, some of it replaced, by number in the batch."""
        (sent,) = self._uploads([pixels])
        for number, square in squares.items():
            sent[number] = square
        return sent

    def _made(self, group: Sequence[Jpeg]) -> list[Tensor] | None:
        try:
            return self._aside(
                lambda: [self._square(*one) for one in zip(group, self._decoded(group), strict=True)]
            )
        except RuntimeError as error:
            if has_run_out(error):
                raise
            if "nvJPEG support" in str(error):
                raise DeviceError(
                    expected="a torchvision with nvJPEG",
                    got="one that was built without",
                    remedy="install a CUDA wheel of torchvision, or use --decode host",
                ) from error
            return None

    def _decoded(self, group: Sequence[Jpeg]) -> list[Tensor]:
        """(3, H, W) uint8 of each, as it lies in the file. Raises RuntimeError where one cannot be decoded."""
        import torchvision.io  # noqa: F401 - loads the operators

        # Not by torchvision.io.decode_jpeg, which warns that it will be gone one day.
        operators = torch.ops.image
        encoded = [torch.frombuffer(bytearray(jpeg.content), dtype=torch.uint8) for jpeg in group]
        if self._device.type == "cuda":
            decoded: list[Tensor] = operators.decode_jpegs_cuda(encoded, _RGB, self._device)
            return decoded
        return [operators.decode_jpeg(one, _RGB, False).to(self._device) for one in encoded]

    def _square(self, jpeg: Jpeg, pixels: Tensor) -> Tensor:
        """Upright, resized and fitted, as `square_pixels` does it."""
        upright = _upright(pixels, jpeg.orientation)
        height, width = upright.shape[1:]
        if (width, height) != (jpeg.frame.source_width, jpeg.frame.source_height):
            raise RuntimeError("another size than its header says")
        plan, side = plan_of(width, height, self._features), self._features.size_px
        resized = F.interpolate(
            upright[None].float(), (plan.height, plan.width), mode="bilinear", antialias=True
        )[0]
        rounded = resized.round_().clamp_(0, 255).to(torch.uint8)
        left, top, right, bottom = jpeg.frame.valid
        square = torch.zeros((3, side, side), dtype=torch.uint8, device=self._device)
        square[:, top:bottom, left:right] = rounded[
            :, top - plan.top : bottom - plan.top, left - plan.left : right - plan.left
        ]
        return square


def _groups(jpegs: Sequence[Jpeg]) -> Iterator[list[Jpeg]]:
    """Consecutive ones of at most `_MOST_PIXELS` together, or one."""
    group: list[Jpeg] = []
    pixels = 0
    for jpeg in jpegs:
        more = jpeg.frame.source_width * jpeg.frame.source_height
        if group and pixels + more > _MOST_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(jpeg)
        pixels += more
    if group:
        yield group


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """(3, H, W) as EXIF's orientation says it is to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation, [])
    return pixels.flip(flips) if flips else pixels
