"""Option values from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer


def load_config(ctx: typer.Context, value: Path | None) -> Path | None:
    """Take a TOML file's values as this command's defaults: flags and the environment still win.

    Keys are option names; a table named as the command, such as [build], goes before the top level.
    The top level may hold options of any command, so that one file serves all; a key or table that
    no command knows is bad usage.
    """
    if value is None:
        return None
    try:
        document = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {value}: {error}") from error
    commands: dict[str, Any] = getattr(ctx.parent.command if ctx.parent else None, "commands", {})
    anyone = {name for command in commands.values() for name in _option_names(command)}
    mine = _option_names(ctx.command)
    top = {key: setting for key, setting in document.items() if not isinstance(setting, dict)}
    own = document.get(ctx.info_name or "", {})
    if not isinstance(own, dict):
        raise typer.BadParameter(
            f"{value} has {ctx.info_name!r} as a value, not as a table [{ctx.info_name}]"
        )
    unknown = [key for key in document.keys() - top.keys() if key not in commands]
    unknown += [key for key in top if _dashed(key) not in anyone]
    unknown += [key for key in own if _dashed(key) not in mine]
    if unknown:
        raise typer.BadParameter(f"{value} has an unknown option {sorted(unknown)[0]!r}")
    defaults = {
        mine[_dashed(key)]: _word(setting)
        for key, setting in [*top.items(), *own.items()]
        if _dashed(key) in mine
    }
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return value


def _option_names(command: Any) -> dict[str, str]:
    """Long option names of a command, without their dashes, to its parameters' names."""
    return {word[2:]: p.name for p in command.params for word in p.opts if word.startswith("--")}


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _word(setting: Any) -> Any:
    """A TOML value as it would be written on the command line."""
    if isinstance(setting, list):
        return ",".join(str(part) for part in setting)
    return setting if isinstance(setting, bool) else str(setting)
