"""`cfa-index evaluate`: how well a model tells good from bad on a labelled test split."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfa_index_cli import cards as c, options as o

if TYPE_CHECKING:
    from cfa_index import Evaluation, PublishedEvaluation


class ProtocolName(StrEnum):
    """Which epoch is measured."""

    LAST = "last"
    PUBLISHED = "published"


def evaluate_command(
    category: o.CategoryName,
    data_root: o.DataRoot = o.DATA_ROOT,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    fuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--fuse",
            help="A further folder of models of the same category, whose maps are averaged with the first "
            "one's (CFA++). May be given several times.",
        ),
    ] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            "--protocol",
            help="'last': the model as trained. 'published': the best of all kept epochs on the test split, "
            "each metric by itself, as the paper's tables; needs train --keep-epochs.",
        ),
    ] = ProtocolName.LAST,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            help="Folder for pictures, a subfolder a category: worst misses, best hits, features before "
            "and after adaptation.",
        ),
    ] = None,
    figure_count: Annotated[
        int, typer.Option("--figure-count", min=0, help="Most misses, and most hits, to draw.")
    ] = 4,
    weights: o.BundleWeights = None,
    batch_size: o.BatchSize = 8,
    rebuild_index: o.RebuildIndex = False,
    device: o.Device = "auto",
    card_memory: c.CardMemory = None,
    card_storage: c.CardStorage = None,
    card_spread: c.CardSpread = None,
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Score DATA_ROOT/CATEGORY/test and compare with its labels.

    Prints AUROC, average precision and the best F1 of the image scores and, where ground_truth holds a
    mask for every defect, of the maps with AUPRO (up to a false-positive rate of 0.3): for the category
    and for each defect type against all good images, with 95% bootstrap intervals. Scores are raw and the
    model is the last one trained: nothing is chosen on the test split unless --protocol published asks
    for it. With several categories their mean is added.

    Fused models are an ensemble: their maps are averaged in the pixels of the image, pixel by pixel over
    the models that looked there, and the largest value is the image's score. They have no threshold.

    Examples:

        cfa-index evaluate --category cable --json -

        cfa-index evaluate --category cable --figures figures

        cfa-index evaluate --category cable --models-dir crop --fuse whole
    """
    del config
    published = protocol is ProtocolName.PUBLISHED
    if published and figures is not None:
        raise typer.BadParameter("--figures shows the last epoch: leave out --protocol published")
    from cfa_index import (
        EVALUATION_SCHEMA_VERSION,
        ModelBundle,
        draw_figures,
        evaluate,
        evaluate_published,
        list_models,
        mean_over_categories,
        open_category,
        prepare_figures,
        reuse_freed_memory,
        set_threads,
    )
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.evaluations import show
    from cfa_index_cli.failures import each_category

    card = c.card_settings(card_memory, card_storage, card_spread)
    reuse_freed_memory()
    if threads is not None:
        set_threads(threads)
    with session(events) as out:
        run: dict[str, Any] = {"batch_size": batch_size, "threads": threads or 2, "listener": out.listener}
        drawn: dict[str, list[str]] = {}

        def evaluate_one(name: str) -> Evaluation | PublishedEvaluation:
            images = open_category(data_root, name).test()
            models = [
                ModelBundle.load(
                    folder / name,
                    device=device,
                    card=card,
                    weights=weights,
                    rebuild_index=rebuild_index,
                )
                for folder in (models_dir, *(fuse or []))
            ]
            for model in models:
                o.warn_random(model.manifest.weights, out.say)
            if published:
                return evaluate_published(models, images, **run)
            if figures is None:
                return evaluate(models, images, **run)
            prepare_figures(figures / name)
            result = evaluate(models, images, **run)
            files = draw_figures(models, images, result, figures / name, count=figure_count, **run)
            drawn[name] = [str(file) for file in files]
            out.say(f"{name}: {len(files)} figures in {figures / name}")
            return result

        names = list_models(models_dir) if category == "all" else [category]
        results, failed = each_category(names, evaluate_one, out.say)
        mean = mean_over_categories(results) if len(names) > 1 and not failed else None
        show(out, results, mean)
    documents = [{**one.to_dict(), "figures": drawn.get(one.category, [])} for one in results]
    document = o.one_or_many(documents, len(names))
    if len(names) > 1:
        document = {
            **document,
            "schema_version": EVALUATION_SCHEMA_VERSION,
            "protocol": protocol.value,
            "mean": mean,
        }
    write_document(json_file, document)
    if failed:
        raise typer.Exit(1)
    if any(result.rejected for result in results):
        raise typer.Exit(3)
