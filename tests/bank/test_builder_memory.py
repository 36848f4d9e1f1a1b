"""What building holds does not grow with the bank: RssAnon of a process that does nothing else."""

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
    import numpy as np
    sys.path.append(sys.argv[2])
    from cfa_index.bank import build_faiss, set_threads
    from vectors import clustered

    def held():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    folder, d = Path(sys.argv[1]), 64
    set_threads(1)
    peaks = []
    for blocks in (2, 2, 8):  # the first warms up
        whole = np.lib.format.open_memmap(folder / "xb.npy", "w+", np.float32, (blocks * 65_536, d))
        for start in range(0, len(whole), 65_536):
            whole[start : start + 65_536] = clustered(65_536, d, seed=start)
        del whole
        peak, done = [held()], threading.Event()

        def watch():
            while not done.wait(0.005):
                peak.append(held())

        thread = threading.Thread(target=watch)
        thread.start()
        built = build_faiss(
            np.load(folder / "xb.npy", mmap_mode="r"), "IVF16,SQ8", seed=0, budget_bytes=4 << 20, scratch_dir=folder
        )
        done.set()
        thread.join()
        assert built.lists is not None
        peaks.append(max(peak))
        del built
    print(json.dumps({"peaks": peaks, "left": sorted(path.name for path in folder.iterdir())}))
""")


@pytest.mark.slow
def test_four_times_the_vectors_take_no_more_anonymous_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no RssAnon on this system")
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    outcome = json.loads(child.stdout)
    _, small, large = outcome["peaks"]
    # The codes and ids of the further 393,216 vectors are 27 MiB, the vectors 96 MiB.
    assert large - small < 8 << 20, outcome
    assert outcome["left"] == ["xb.npy"]
