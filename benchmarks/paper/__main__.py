"""Run the paper's Tables 1 to 7 and Figures 3 and 4, and print ours next to the published numbers.

    python -m benchmarks.paper --data-root DIR --output OUT       MVTec AD, all of it
    python -m benchmarks.paper --data-root DIR --output OUT --tables 2,4 --categories bottle,cable
    python -m benchmarks.paper --data-root DIR --output OUT --protocol both --ablations
    python -m benchmarks.paper --quick --output OUT               made-up data: every cell runs, nothing is learned

DIR has MVTec AD as it is published: DIR/<class>/train/good, DIR/<class>/test/<defect>,
DIR/<class>/ground_truth/<defect>. OUT gets tables.md, tables.csv, tables.json, figures/, and a file for
every cell in cells/. Start the same command again after an interruption: what is there is not run again.
Exit code 0: all done; 1: nothing could be done; 3: some cells failed, and tables.md says which and why.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.paper import tables
from benchmarks.paper.cells import TABLES, Cell, Options, Protocol
from benchmarks.paper.made_up import QUICK_CLASSES, write_dataset, write_weights
from benchmarks.paper.plan import cells
from benchmarks.paper.published import CLASSES
from benchmarks.paper.run import Result, Site, run
from cfa_index import list_categories, reuse_freed_memory, set_threads, write_bytes, write_json
from cfa_index.errors import CfaIndexError, DatasetError

_PROTOCOLS: dict[str, tuple[Protocol, ...]] = {
    "last": ("last",),
    "published": ("published",),
    "both": ("last", "published"),
}


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, write the tables; gives the exit code."""
    given = _parser().parse_args(arguments)
    try:
        return _run(given)
    except CfaIndexError as error:
        print(f"benchmarks.paper: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    data_root = write_dataset(given.output / "data") if given.quick else given.data_root
    known = QUICK_CLASSES if given.quick else CLASSES
    options = Options(
        tables=given.tables,
        categories=_categories(given.categories or known, data_root),
        seeds=tuple(range(given.seeds or (1 if given.quick else 3))),
        protocols=_PROTOCOLS[given.protocol],
        ablations=given.ablations,
        quick=given.quick,
    )
    planned = cells(options)
    if given.dry_run:
        _print_plan(planned)
        return 0
    weights_dir = given.weights_dir
    if given.quick:
        weights_dir = write_weights(
            given.output / "weights", {cell.backbone for cell in planned if cell.members}
        )
    set_threads(given.threads)
    reuse_freed_memory()
    site = Site(
        data_root=data_root,
        output=given.output,
        weights_dir=weights_dir,
        device=given.device,
        threads=given.threads,
    )
    _say(describe(0, seeds=len(options.seeds), protocol=given.protocol, quick=given.quick))

    def write(results: Mapping[Cell, Result]) -> None:
        write_bytes(given.output / "tables.md", tables.markdown(options, results).encode())
        rows = tables.records(options, results)
        write_bytes(given.output / "tables.csv", tables.csv_text(rows).encode())
        write_json(given.output / "tables.json", tables.document(options, results))

    results = run(planned, site, say=_say, after_group=write)
    write(results)
    print(tables.markdown(options, results))
    failed = sum(1 for result in results.values() if result.error)
    _say(f"{len(results) - failed} cells done, {failed} failed: {given.output / 'tables.md'}")
    return 3 if failed else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _categories(asked: tuple[str, ...], data_root: Path) -> tuple[str, ...]:
    """Those of the asked classes that are there.

    Raises:
        DatasetError: none is.
    """
    there = list_categories(data_root)
    found = tuple(name for name in asked if name in there)
    if not found:
        raise DatasetError(
            expected=f"classes of MVTec AD in {data_root}, such as {asked[0]}/train/good",
            got=", ".join(there) or "none",
            remedy="give the folder that holds bottle, cable, ... with --data-root",
        )
    if len(found) < len(asked):
        _say(f"not there, left out: {', '.join(name for name in asked if name not in there)}")
    return found


def _print_plan(planned: list[Cell]) -> None:
    """What would run: cells, and trainings, of which several cells may share one."""
    trainings = {
        (cell.group, member) for cell in planned for member in cell.members if member.train.epochs > 0
    }
    counts = Counter(
        (member.features.backbone, f"{member.descriptor.gamma_d:g}", member.preset) for _, member in trainings
    )
    print(f"{len(planned)} cells, {len(trainings)} trainings")
    for (backbone, gamma, name), count in sorted(counts.items()):
        print(f"    {count:4} of {backbone}, gamma {gamma}, preset {name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data-root", type=Path, help="folder of MVTec AD")
    source.add_argument("--quick", action="store_true", help="a tiny made-up data set and random weights")
    parser.add_argument(
        "--output", type=Path, required=True, help="tables, figures and the cells that are done"
    )
    parser.add_argument("--tables", type=_tables, default=TABLES, help="such as 2,4 [default: all]")
    parser.add_argument("--categories", type=_classes, help="such as bottle,cable [default: all]")
    parser.add_argument("--seeds", type=_count, help="how many, from 0 [default: 3, 1 with --quick]")
    parser.add_argument(
        "--protocol",
        choices=sorted(_PROTOCOLS),
        default="last",
        help="last: the last epoch, CFA++ fused. published: the best epoch on the test set for each metric, CFA++"
        " the better of two for each class; 1 seed. [default: last]",
    )
    parser.add_argument(
        "--ablations", action="store_true", help="also scores, radii, initialisations and banks"
    )
    parser.add_argument(
        "--weights-dir", type=Path, help="folder with torchvision's files [default: its cache, or the net]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=_count, default=2)
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    return parser


def _tables(text: str) -> tuple[int, ...]:
    found = tuple(sorted({int(one) for one in text.split(",")}))
    if not set(found) <= set(TABLES):
        raise argparse.ArgumentTypeError("some of 1 to 7, such as 2,4")
    return found


def _classes(text: str) -> tuple[str, ...]:
    found = tuple(sorted(set(text.split(","))))
    if unknown := set(found) - set(CLASSES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: no class of MVTec AD")
    return found


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
