"""Options that say where work runs, and many categories at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import typer

from cfa_index_cli import options as o
from cfa_index_cli.failures import error_line

if TYPE_CHECKING:
    from cfa_index import RayCluster
    from cfa_index_cli.console import Session

Result = TypeVar("Result")


class EngineName(StrEnum):
    """Where work runs."""

    LOCAL = "local"
    RAY = "ray"


CategoriesEngine = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="local: one category after the other. ray: as many at a time as there is room for, in processes of "
        "--threads each (default: 1), here or on a cluster whose machines share the folders.",
        rich_help_panel=o.RUN,
    ),
]
ScoreEngine = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="local: this process and its workers. ray: tasks that read and actors that score, here or on a cluster "
        "(extra ray); either goes on with what the other has left.",
        rich_help_panel=o.RUN,
    ),
]
Actors = Annotated[
    int,
    typer.Option(
        "--actors", min=1, help="Ray processes that score, each with the model.", rich_help_panel=o.RUN
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Of a Ray cluster that is there, such as auto or HOST:6379. [default: one on this machine, for the run]",
        rich_help_panel=o.RUN,
    ),
]
GpusPerActor = Annotated[
    float,
    typer.Option(
        "--gpus-per-actor", min=0, help="GPUs of each Ray process, also 0.5.", rich_help_panel=o.RUN
    ),
]


@dataclass(frozen=True)
class _Attempt(Generic[Result]):
    """Some work of which an error that has a line comes back as the line."""

    work: Callable[[str], Result]

    def __call__(self, name: str) -> Result | _Failure:
        try:
            return self.work(name)
        except Exception as error:
            line = error_line(error)
            if line is None:
                raise
            return _Failure(line)


@dataclass(frozen=True)
class _Failure:
    line: str


def each_category_on_ray(
    names: Sequence[str],
    work: Callable[[str], Result],
    show: Callable[[str, Result], None],
    out: Session,
    cluster: RayCluster,
) -> tuple[list[Result], bool]:
    """Do the work of each of several categories on Ray, and show each as it comes; one that fails is a line.

    Returns:
        The results of those that did not fail, in the order of the names, and whether one failed.

    Raises:
        EngineError: Ray is not there, or has failed.
    """
    from cfa_index import each_on_ray, stage

    results: dict[str, Result] = {}
    with stage(out.listener, "categories", len(names), "categories") as advance:
        for name, result in each_on_ray(names, _Attempt(work), cluster=cluster):
            if isinstance(result, _Failure):
                out.say(result.line)
            else:
                results[name] = result
                show(name, result)
            advance(1)
    return [results[name] for name in names if name in results], len(results) < len(names)
