"""`cfa-index evaluate`: AUROC and AUPRO on a labelled test split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cfa_index_cli import options as o

if TYPE_CHECKING:
    from cfa_index import Evaluation


def evaluate_command(
    category: o.CategoryName,
    data_root: o.DataRoot = o.DATA_ROOT,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    weights: o.BundleWeights = None,
    batch_size: o.BatchSize = 8,
    device: o.Device = "auto",
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Score DATA_ROOT/CATEGORY/test and compare with its labels.

    Prints image AUROC with a 95% bootstrap interval, and pixel AUROC and AUPRO (up to a
    false-positive rate of 0.3) where ground_truth holds a mask for every defect. Scores are raw and
    the model is the last one trained: nothing is chosen on the test split.

    Example:

        cfa-index evaluate --category cable --json -
    """
    del config
    from cfa_index import ModelBundle, evaluate, list_models, open_category, reuse_freed_memory, set_threads
    from cfa_index_cli.console import percent, session, write_document
    from cfa_index_cli.failures import each_category

    reuse_freed_memory()
    if threads is not None:
        set_threads(threads)
    with session(events) as out:

        def evaluate_one(name: str) -> Evaluation:
            images = open_category(data_root, name).test()
            bundle = ModelBundle.load(models_dir / name, device=device, weights=weights)
            o.warn_random(bundle.manifest.weights, out.say)
            return evaluate(
                bundle, images, batch_size=batch_size, threads=threads or 2, listener=out.listener
            )

        names = list_models(models_dir) if category == "all" else [category]
        results, failed = each_category(names, evaluate_one, out.say)
        rows = []
        for result in results:
            interval = result.image_auroc_interval
            rows.append(
                [
                    result.category,
                    percent(result.image_auroc),
                    f"{percent(interval[0])} .. {percent(interval[1])}" if interval else "-",
                    percent(result.pixel_auroc),
                    percent(result.aupro),
                    percent(result.detection_rate),
                    percent(result.false_alarm_rate),
                ]
            )
            if result.masks:
                out.say(f"{result.category}: no pixel metrics, {result.masks}")
        header = [
            "category",
            "image AUROC",
            "95% interval",
            "pixel AUROC",
            "AUPRO",
            "detected",
            "false alarms",
        ]
        out.table("test split, raw scores, last epoch", header, rows)
    write_document(json_file, o.one_or_many([result.to_dict() for result in results], len(names)))
    if failed:
        raise typer.Exit(1)
    if any(result.rejected for result in results):
        raise typer.Exit(3)
