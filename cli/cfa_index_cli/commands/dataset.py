"""`cfa-index dataset`: commands that make data sets."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfa_index_cli import options as o

if TYPE_CHECKING:
    from cfa_index import RotateReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Make data sets from others.")


class SplitsName(StrEnum):
    """Which images are turned."""

    ALL = "all"
    TEST = "test"


class CornersName(StrEnum):
    """What shows where the turned image ends."""

    REFLECT = "reflect"
    BLACK = "black"


@app.command("rotate")
def rotate_command(
    category: o.CategoryName,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The new data root; the copy is OUTPUT/CATEGORY.")
    ],
    data_root: o.DataRoot = o.DATA_ROOT,
    degrees: Annotated[
        float | None, typer.Option("--degrees", help="Largest turn, either way. [default: 10]")
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option("--resize", help="Side in pixels that the turned image is resized to. [default: 256]"),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", help="Side in pixels of the square cut out at random. [default: 224]"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the draws. [default: 0]")] = None,
    splits: Annotated[
        SplitsName,
        typer.Option("--splits", help="all as in the paper, or test for a model of upright images."),
    ] = SplitsName.ALL,
    corners: Annotated[
        CornersName | None,
        typer.Option(
            "--corners",
            help="Past the image's edge: mirrored, or black as in the published code. [default: reflect]",
        ),
    ] = None,
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
) -> None:
    """Write a randomly turned copy of a category: RD-MVTec of the paper.

    Each image is turned within 10 degrees, resized to 256 x 256 and cropped to 224 x 224, together with
    its mask. The draw follows from the seed and the image's path: every run makes the same files, and
    one that was stopped goes on where it was. Build on the copy with --geometry whole: it is cropped
    already. Exit code 3 says that some images could not be read and are not in the copy.

    Example:

        cfa-index dataset rotate --category cable --output data-rotated

        cfa-index build --category cable --data-root data-rotated
    """
    from cfa_index import RotationSpec, list_categories, open_category, rotate_category
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.failures import each_category

    given: dict[str, Any] = {"degrees": degrees, "resize_px": resize, "crop_px": crop, "seed": seed}
    given["corners"] = corners and corners.value
    spec = RotationSpec(**{name: value for name, value in given.items() if value is not None})
    with session(events) as out:

        def rotate_one(name: str) -> RotateReport:
            return rotate_category(
                open_category(data_root, name),
                output,
                spec,
                splits=splits.value,
                threads=threads or 2,
                listener=out.listener,
            )

        names = list_categories(data_root) if category == "all" else [category]
        results, failed = each_category(names, rotate_one, out.say)
        header = ["category", "images", "from an earlier run", "masks", "defect out of view", "rejected"]
        rows = [
            [r.category, *(str(n) for n in (r.images, r.resumed, r.masks, r.out_of_view, r.rejected))]
            for r in results
        ]
        out.table(f"turned within {spec.degrees:g} degrees, in {output}", header, rows)
    write_document(json_file, o.one_or_many([result.to_dict() for result in results], len(names)))
    if failed:
        raise typer.Exit(1)
    if any(result.rejected for result in results):
        raise typer.Exit(3)
