"""`cfa-index`: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from cfa_index.errors import CfaIndexError
from cfa_index_cli.commands import build, demo, evaluate, query, score, train


class _Commands(TyperGroup):
    """Turns a `CfaIndexError` of any command into one line on standard error and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CfaIndexError as error:
            typer.echo(f"cfa-index: {error}", err=True)
            raise typer.Exit(1) from error
        except BrokenPipeError:  # see `run`
            raise
        except OSError as error:  # a folder that may not be entered, a name that is too long
            got = error.strerror or str(error)
            place = f" {error.filename}" if error.filename else " a file"
            typer.echo(
                f"cfa-index: expected to use{place}, got {got}; check the path and its permissions", err=True
            )
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
app.command("build")(build.build_command)
app.command("train")(train.train_command)
app.command("query")(query.query_command)
app.command("score")(score.score_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("demo")(demo.demo_command)


def run() -> None:
    """The console script."""
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        sys.stderr.close()
        sys.exit(1)
