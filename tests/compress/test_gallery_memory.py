"""A bank of all patches that goes through a file holds no more for more images: RssAnon of a quiet process.

The same bank held in memory is the control: a measurement that did not see it would prove nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_CHILD = textwrap.dedent("""
    import json, sys, threading
    from pathlib import Path
    import numpy as np, torch
    from cfa_index.bank import MemoryBank, set_threads
    from cfa_index.compress import gather_patches

    folder, cells, d = Path(sys.argv[1]), 4096, 64

    def held():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def stream_of(images):
        def stream():
            for row in range(images):
                draw = np.random.default_rng(row)
                yield row, np.arange(cells), draw.standard_normal((cells, d), dtype=np.float32)
        return stream

    def grown(images, held_bytes):
        done, seen = threading.Event(), [held()]

        def watch():
            while not done.wait(0.002):
                seen.append(held())

        thread = threading.Thread(target=watch)
        thread.start()
        numbers = np.arange(images * cells)
        bank = gather_patches(stream_of(images), numbers, held_bytes=held_bytes)
        memory = MemoryBank(bank.features, torch.device("cpu"))
        np.save(folder / "vectors.npy", memory.vectors)
        seen.append(held())
        done.set()
        thread.join()
        return max(seen) - seen[0]

    set_threads(1)
    grown(20, 0)  # warms up
    further = 60 * cells * d * 4
    print(json.dumps({name: (grown(80, most) - grown(20, most)) / further for name, most in (("file", 0), ("memory", 1 << 40))}))
""")


@pytest.mark.slow
def test_four_times_the_images_take_no_more_anonymous_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no RssAnon on this system")
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    share = json.loads(child.stdout)
    # Of the further patches' features; their numbers, images and cells, 24 bytes a patch, are a tenth of these.
    assert share["file"] < 0.4, share
    assert share["memory"] > 0.8, share
