"""Made-up rows of a study, as if it had been run."""

from __future__ import annotations

from itertools import product

from cfa_index.report.study_row import StudyRow

_FASTER = {"flat": 1.0, "pca-refine": 4.0, "ivf": 9.0, "ivf-pq": 20.0, "hnsw": 7.0}
_RECALL = {"flat": 1.0, "pca-refine": 0.9995, "ivf": 0.991, "ivf-pq": 0.97, "hnsw": 0.995}


def made_up_row(index: str, size: int, *, labelled: bool = True, method: str = "hybrid") -> StudyRow:
    """A cell whose figures follow from its settings by simple rules."""
    flat = size * 152 * 4
    image_ms = 3 + size / 250 / _FASTER[index]
    return StudyRow(
        key=f"{method}-{index}-{size}",
        method=method,
        bank_size=size,
        gamma_d=0.25,
        index=index,
        memories=size,
        width=152,
        factory="Flat" if index == "flat" else f"{index.upper()}64",
        parameters="" if index == "flat" else "nprobe=8",
        resident_bytes=flat if index == "flat" else int(flat / 3),
        index_bytes=0 if index == "flat" else int(flat / 3),
        vectors_bytes=flat,
        index_disk_bytes=0 if index == "flat" else int(flat / 3),
        vectors_disk_bytes=flat,
        bank_s=size / 200,
        index_s=0.01,
        image_ms_p50=image_ms,
        image_ms_p95=image_ms * 1.2,
        image_ms_p99=image_ms * 1.5,
        patch_ms_p50=image_ms / 400,
        patch_ms_p95=image_ms / 300,
        patch_ms_p99=image_ms / 200,
        images_per_s_1=1000 / image_ms,
        images_per_s_8=1300 / image_ms,
        images_per_s_64=1400 / image_ms,
        recall_at_1=_RECALL[index],
        recall_at_3=_RECALL[index] - 0.004,
        image_auroc=0.9 + 0.02 * (size / 12544) ** 0.3 - (1 - _RECALL[index]) / 4 if labelled else None,
        pixel_auroc=None,
        backbone_ms=30.0,
        seconds=4.0,
        on_frontier=index in ("flat", "ivf-pq") and size != 784,
        command=f"cfa-index build --category weave --method {method} --bank-size {size} --index {index}",
    )


def made_up_rows(*, labelled: bool = True) -> list[StudyRow]:
    """Three sizes under five indexes, and a cell that could not be made."""
    rows = [
        made_up_row(index, size, labelled=labelled) for size, index in product((784, 3136, 12544), _FASTER)
    ]
    failed = StudyRow(
        key="failed",
        method="full",
        bank_size=10**6,
        gamma_d=0.25,
        index="flat",
        command="cfa-index build --category weave --bank-size 1000000",
        error="expected a bank of at most 1000 memories, got 1000000; give a smaller --bank-size",
    )
    return [*rows, failed]
