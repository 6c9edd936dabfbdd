"""From a parsed YAML tree to frozen dataclasses, with every key, type and range checked.

The schema states types with `Annotated` ranges and `Literal` choices and holds no values, so that the file is the only source
of truth. Errors name the key, the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any


class ConfigError(ValueError):
    """A parameter that cannot be used; the message is meant for the user and fits on one line."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive; `above` excludes the lower bound."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def check(self, key: str, value: float) -> None:
        if self.least is not None and value < self.least:
            raise ConfigError(f"{key}={value} is too small; it must be at least {self.least:g}.")
        if self.above is not None and value <= self.above:
            raise ConfigError(f"{key}={value} is too small; it must be above {self.above:g}.")
        if self.most is not None and value > self.most:
            raise ConfigError(f"{key}={value} is too large; it must be at most {self.most:g}.")


Count = Annotated[int, Range(least=1)]
Whole = Annotated[int, Range(least=0)]
Rate = Annotated[float, Range(least=0, most=1)]
Positive = Annotated[float, Range(above=0)]
Weight = Annotated[float, Range(least=0)]
Interval = Annotated[tuple[float, float], Range(above=0, most=1)]


def unknown(key: str, known: Iterable[Any]) -> ConfigError:
    """The error for a dotted key that is none, with the nearest of those `known` in its place."""
    names = [str(name) for name in known]
    if not names:
        return ConfigError(f"{key} is not a parameter; what is above it is one value, not a table.")
    close = difflib.get_close_matches(key.rpartition(".")[2], names, 1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}."
    return ConfigError(f"{key} is not a parameter; {hint}")


def build(schema: Any, value: Any, key: str = "") -> Any:
    """`value` as an instance of `schema`: a dataclass, a scalar type, `Annotated`, `Literal`, `X | None`, `dict` or `tuple`.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, a number out of range.
    """
    origin = typing.get_origin(schema)
    if origin is typing.Annotated:
        inner, *checks = typing.get_args(schema)
        built = build(inner, value, key)
        for check in checks:
            for number in built if isinstance(built, tuple) else (built,):
                if number is not None:
                    check.check(key, number)
        return built
    if origin is typing.Literal:
        choices = typing.get_args(schema)
        if value not in choices or isinstance(value, bool):
            raise ConfigError(f"{key}={value!r} is not known; choose one of {', '.join(map(str, choices))}.")
        return value
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in typing.get_args(schema) if arg is not type(None))
        return None if value is None else build(inner, value, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key} must be a table, not {_shown(value)}.")
        inner = typing.get_args(schema)[1]
        return {name: build(inner, part, f"{key}.{name}") for name, part in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, not {_shown(value)}.")
        kinds = typing.get_args(schema)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise ConfigError(f"{key} must have {len(kinds)} entries, not {len(value)}.")
        return tuple(build(kind, part, f"{key}[{i}]") for i, (kind, part) in enumerate(zip(kinds, value, strict=True)))
    if dataclasses.is_dataclass(schema):
        return _table(schema, value, key)
    return _scalar(schema, value, key)


def _table(schema: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{key or 'params.yaml'} must be a table, not {_shown(value)}.")
    kinds = typing.get_type_hints(schema, include_extras=True)
    for name in value:
        if name not in kinds:
            raise unknown(_join(key, str(name)), kinds)
    for name in kinds:
        if name not in value:
            raise ConfigError(f"{_join(key, name)} is missing; nothing has a default here.")
    return schema(**{name: build(kind, value[name], _join(key, name)) for name, kind in kinds.items()})


def _scalar(schema: Any, value: Any, key: str) -> Any:
    if schema is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be a finite number.")
    if not isinstance(value, schema) or (schema is int and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise ConfigError(f"{key} must be {names[schema]}, not {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
