"""anomalib's CFA over a folder, in an environment of its own; called by `benchmarks.batch`.

    PYTHON benchmarks/batch_elsewhere.py FOLDER BATCH THREADS WORKERS GAMMA

Files are read by anomalib's `PredictDataset` and torch's loader with WORKERS processes, prepared by its
pre-processor at 224 px, and scored by its model: image score and map. wide_resnet50_2 has random weights, the
bank random vectors of the size that 1/GAMMA gives. One line of JSON goes to standard output, with the
throughput after the first batch.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torchvision
from torch.utils.data import DataLoader

NETWORK = "wide_resnet50_2"
CHANNELS = 256 + 512 + 1024
SIZE_PX, PATCHES = 224, 56 * 56


def main() -> None:
    """Score the folder once."""
    from anomalib.data import PredictDataset
    from anomalib.models import Cfa

    folder = Path(sys.argv[1])
    batch, threads, workers, gamma = map(int, sys.argv[2:6])
    torch.set_num_threads(threads)
    without_weights = partial(getattr(torchvision.models, NETWORK), weights=None)
    with patch.object(torchvision.models, NETWORK, lambda **_: without_weights()):
        module = Cfa(
            backbone=NETWORK,
            gamma_c=gamma,
            gamma_d=gamma,
            pre_processor=Cfa.configure_pre_processor((SIZE_PX, SIZE_PX)),
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )
    module.eval()
    model = module.model
    model.memory_bank = torch.randn(CHANNELS // gamma, PATCHES // gamma)
    files = PredictDataset(folder, image_size=(SIZE_PX, SIZE_PX))
    loader = DataLoader(files, batch_size=batch, num_workers=workers, collate_fn=files.collate_fn)
    began = time.perf_counter()
    started = scored = 0.0
    with torch.inference_mode():
        for part in loader:
            model(module.pre_processor(part.image)).pred_score.tolist()
            if started:
                scored += len(part.image)
            else:
                started = time.perf_counter()
    rate = scored / (time.perf_counter() - started)
    print(json.dumps({"images_per_s": rate, "start_s": started - began}))


if __name__ == "__main__":
    main()
