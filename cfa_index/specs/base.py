"""What all settings share: validation, and plain JSON values in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from cfa_index.errors import SpecError

LARGEST_SEED = 1_000_000_000
"""Every library's generator takes it."""


def require(condition: bool, name: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise a SpecError that names the setting, unless the condition holds."""
    if not condition:
        raise SpecError(
            expected=f"{name} to be {expected}",
            got=repr(got),
            remedy=remedy or f"give another value for {name}",
        )


class Spec:
    """What all settings share: to and from plain JSON values, with unknown or missing keys refused."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Remake a spec from `to_dict`.

        Raises:
            SpecError: a key is unknown or missing, or a value is out of its range.
        """
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if set(values) != names:
            raise SpecError(
                expected=f"{cls.__name__} with keys {sorted(names)}",
                got=f"{sorted(values)}",
                remedy="use the version of cfa-index that wrote it, or build again",
            )
        hints = get_type_hints(cls)
        made = {name: _typed(hints[name], value) for name, value in values.items()}
        for name, value in made.items():
            require(fits(value, hints[name]), name, "of the type that it is written with", value)
        return cls(**made)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that came from JSON is of an annotated type, however deep; an int passes for a float.

    Args:
        value: with its objects made into dataclasses where the annotation says so.
        hint: str, int, float, bool, None, a Literal, a union, a tuple, a Mapping or a dataclass of these.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(one, inner[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items()
        )
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return isinstance(value, hint) and all(
            fits(getattr(value, field.name), hints[field.name]) for field in dataclasses.fields(hint)
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Spec):
        return hint.from_dict(value)
    return tuple(value) if get_origin(hint) is tuple else value
