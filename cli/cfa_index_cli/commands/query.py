"""`cfa-index query`: why an image scores as it does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from cfa_index_cli import cards as c, options as o


def query_command(
    images: Annotated[list[Path], typer.Argument(help="Images to explain.", show_default=False)],
    category: o.OneCategory,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for a picture an image, NAME_query.png.")
    ] = Path("query"),
    patches: Annotated[int, typer.Option("--patches", min=1, max=6, help="Worst patches to show.")] = 4,
    threshold: o.ThresholdValue = None,
    weights: o.BundleWeights = None,
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
    """Show the score of images, their heatmaps, and the normal patches that the worst ones matched.

    Example:

        cfa-index query part_17.png --category cable
    """
    del config
    from cfa_index import ModelBundle, query, query_picture, save_picture, set_threads
    from cfa_index.errors import ImageError
    from cfa_index_cli.console import session, write_document

    if threads is not None:
        set_threads(threads)
    documents, rejected = [], 0
    taken: set[str] = set()
    with session(events) as out:
        bundle = ModelBundle.load(
            models_dir / category,
            device=device,
            card=c.card_settings(card_memory, card_storage, card_spread),
            weights=weights,
            rebuild_index=rebuild_index,
        )
        o.warn_random(bundle.manifest.weights, out.say)
        for number, path in enumerate(images):
            try:
                result = query(bundle, path, patches=patches, threshold=threshold)
            except ImageError as error:
                if len(images) == 1:
                    raise
                out.say(f"left out: {error}")
                documents.append({"path": str(path), "error": str(error)})
                rejected += 1
                continue
            names = itertools.chain([path.stem], (f"{path.stem}_{n}" for n in itertools.count(number)))
            name = next(name for name in names if name.casefold() not in taken)  # some disks fold case
            taken.add(name.casefold())
            picture = output / f"{name}_query.png"
            save_picture(query_picture(result), picture)
            limit = f"threshold {result.threshold:.4g}" if result.threshold is not None else "no threshold"
            out.table(
                f"{path}: score {result.verdict.score:.4g}, {limit}",
                ["patch at", "score", "nearest normal patch", "distance"],
                [
                    [
                        f"{patch.box[0]},{patch.box[1]}",
                        f"{patch.score:.4g}",
                        f"{patch.matches[0].source.uri} at {patch.matches[0].source.box[0]},"
                        f"{patch.matches[0].source.box[1]}",
                        f"{patch.matches[0].distance:.4g}",
                    ]
                    for patch in result.worst
                ],
            )
            out.say(f"picture: {picture}")
            documents.append({**result.to_dict(), "picture": str(picture)})
    write_document(json_file, {"schema_version": 1, "category": category, "images": documents})
    if rejected:
        raise typer.Exit(3)
