"""`cfa-index doctor`: is this machine fit, how fast is it, what is wrong, and which command suits it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfa_index_cli import options as o


def doctor_command(
    backbone: Annotated[
        str, typer.Option("--backbone", help="The network to measure, with random weights.")
    ] = o.RECOMMENDED.features.backbone,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Target folder of your runs; its disk is looked at.")
    ] = None,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=600, help="How long to measure, about.")
    ] = 10.0,
    quick: Annotated[bool, typer.Option("--quick", help="Measure nothing; the facts alone.")] = False,
    threads: o.Threads = None,
    json_file: o.Json = None,
    config: o.Config = None,
) -> None:
    """Look at this machine: versions, cores, memory, cards, disks; measure it; say which command suits it.

    Cores and memory are those that this process may use, its container's limits counted. Decoding and the
    backbone run for some seconds on made-up images, and up to 64 MiB are written to each disk and removed.
    Nothing is downloaded. What cannot be found is unknown, and no fault.

    Findings are ok, a note (it costs time, or is good to know) or a problem (something does not work).
    Exit code 1 says that a run would fail here, such as on a full disk; notes never change it.

    Examples:

        cfa-index doctor

        cfa-index doctor --quick --output /data/scores --json -
    """
    del config
    from cfa_index.errors import CfaIndexError
    from cfa_index_cli.console import session, write_document
    from cfa_index_cli.diagnoses import show

    try:  # what this command is there to tell must not be a traceback
        from cfa_index import examine, set_threads
    except ImportError as error:
        raise CfaIndexError(
            expected="the libraries that cfa-index needs",
            got=str(error),
            remedy="pip install --force-reinstall cfa-index",
        ) from error
    if threads is not None:
        set_threads(threads)
    folders = {"models": models_dir, "features": features_dir}
    if output is not None:
        folders["output"] = output
    with session(None) as out:
        diagnosis = examine(
            folders,
            backbone=backbone,
            seconds=0.0 if quick else seconds,
            output=output,
            listener=out.listener,
        )
        show(diagnosis, out)
    write_document(json_file, diagnosis.to_dict())
    if not diagnosis.is_usable:
        raise typer.Exit(1)
