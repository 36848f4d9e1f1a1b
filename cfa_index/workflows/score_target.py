"""The target of a run: whose it is, the maps that are there, and the table that is made at the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from cfa_index.errors import OutputError
from cfa_index.files import json_text
from cfa_index.places import LocalPlace, Place
from cfa_index.workflows.score_parts import ROWS, Parts

RUN_FILE = "run.json"
LOCK_FILE = "lock"
CSV_FILE = "scores.csv"
_ESCAPED = tuple("=+-@＝＋－＠\t\r\n'")
"""A cell that begins so is a formula to a spreadsheet, or looks like one that was escaped."""


def require_apart(source: Place, target: Place) -> None:
    """A target inside the source would be scored, too.

    Raises:
        OutputError: it is inside.
    """
    if isinstance(source, LocalPlace) and isinstance(target, LocalPlace):
        inside = target.root.resolve().is_relative_to(source.root.resolve())
    else:
        inside = f"{target.uri}/".startswith(f"{source.uri}/")
    if inside:
        raise OutputError(
            expected=f"an output outside {source.uri}",
            got=target.uri,
            remedy="choose another -o, or its pictures would be scored too",
        )


def claim(target: Place, settings: Mapping[str, Any]) -> None:
    """Take a target that is new, or was left by a run with the same settings; it is held by the caller.

    Raises:
        OutputError: see `require_ours`; or it cannot be written.
    """
    if require_ours(target, settings):
        target.write(RUN_FILE, json_text(dict(settings)).encode())


def require_ours(target: Place, settings: Mapping[str, Any]) -> bool:
    """Whether a target is new; else it was left by a run with the same settings. Nothing is written.

    Raises:
        OutputError: it is another run's, or holds something else.
    """
    content = target.read(RUN_FILE)
    if content is None:
        if target.names("") not in ([], [LOCK_FILE]):
            raise OutputError(
                expected=f"{target.uri} to be new, empty, or from an earlier run",
                got="something else there",
                remedy="give another -o",
            )
        return True
    try:
        before = {"decode": "host", **json.loads(content)}  # runs of before this setting go on
    except (ValueError, TypeError):
        before = {}
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        raise OutputError(
            expected=f"{target.uri} to be from a run with the same {', '.join(changed)}",
            got="; ".join(f"{name} {before.get(name)!r} then, {settings[name]!r} now" for name in changed),
            remedy="give another -o, or delete this folder",
        )
    return False


def write_csv(parts: Parts) -> None:
    """scores.csv from the parts, one at a time; no cell is a formula. Raises OutputError."""
    with parts.target.create(CSV_FILE) as handle:
        # Lines end with CR LF (RFC 4180): with LF alone, Python below 3.13 leaves a CR in a name unquoted.
        text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(ROWS.names)
        for table in parts.tables():
            for row in table.to_pylist():
                writer.writerow(_cell(row[name]) for name in ROWS.names)
        text.detach()  # flushes, and leaves the handle to its owner


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_ESCAPED):
        return "'" + value
    return "" if value is None else value
