"""`cfa-index`: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cfa_index_cli.commands import (
    backbones,
    bank,
    build,
    dataset,
    demo,
    doctor,
    evaluate,
    query,
    score,
    study,
    train,
)
from cfa_index_cli.failures import error_line


class _Commands(TyperGroup):
    """Turns an error of any command that has a line into that line on standard error and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = error_line(error)
            if line is None:  # a bug, typer's own, or a broken pipe (see `run`)
                raise
            typer.echo(line, err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="cfa-index",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Find defects in industrial images by retrieval: learn what is normal from good images, "
        "score new ones by their distance to it.\n\n"
        "A first run on your own data, laid out as data/cable/train/good/*.png:\n\n"
        "    cfa-index build --category cable\n\n"
        "    cfa-index score NEW_IMAGES/ --category cable -o scores\n\n"
        "Exit codes: 0 done, 1 an error (one line says what to do), 2 bad usage, 3 done but some "
        "images were rejected."
    ),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cfa-index {version('cfa-index')}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


app.command("build")(build.build_command)
app.command("train")(train.train_command)
app.command("query")(query.query_command)
app.command("score")(score.score_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("study")(study.study_command)
app.add_typer(bank.app, name="bank")
app.add_typer(dataset.app, name="dataset")
app.command("backbones")(backbones.backbones_command)
app.command("doctor")(doctor.doctor_command)
app.command("demo")(demo.demo_command)


def run() -> None:
    """The console script."""
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        sys.stderr.close()
        sys.exit(1)
