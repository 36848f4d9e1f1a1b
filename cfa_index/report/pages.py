"""What our pages have in common: data inside a script element, and the parts they are put together from."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray


def page_part(name: str) -> str:
    """The text of a file that lies beside this module, such as `score_page.html`."""
    return files("cfa_index.report").joinpath(name).read_text(encoding="utf-8")


def in_script(document: Any) -> str:
    """JSON that no HTML parser takes for the end of its element, or for the start of another."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(values: NDArray[np.float32] | NDArray[np.float64] | NDArray[np.uint32]) -> str:
    """An array's little-endian bytes in base64, for a typed array of JavaScript."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def csp_hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline element's text: only that very text is let through."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
