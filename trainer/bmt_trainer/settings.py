"""Settings dataclasses: fields with help and bounds, read from YAML, overridden by flags."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from bmt_trainer.errors import ConfigError

T = TypeVar("T")

# Types of settings, as error messages name them.
_TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with a help text and bounds; `above` excludes its bound."""
    bounds = {"least": least, "most": most, "above": above}
    return dataclasses.field(default=default, metadata={"help": help, **bounds})


def redefined(kind: type[Any], name: str, default: Any, help: str | None = None) -> Any:
    """The option `name` of the dataclass `kind` with another default, and another help text.

    The bounds stay: a subclass cannot widen them.
    """
    metadata = dict(kind.__dataclass_fields__[name].metadata)
    if help is not None:
        metadata["help"] = help
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any, skip: Collection[str] = ()) -> None:
    """Convert each field of a dataclass of `option`s, except `skip`, and check its bounds.

    Text becomes a number if the field is one: YAML reads 5e-4 as text. Raises ConfigError.
    """
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        if item.name in skip:
            continue
        value = _convert(item.name, getattr(config, item.name), hints[item.name])
        _bound(item.name, value, item.metadata)
        object.__setattr__(config, item.name, value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold `setting: value` lines")
    return values


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """An instance of `kind`. Raises ConfigError for an unknown or missing setting."""
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"the settings are {', '.join(known)}"
            raise ConfigError(f"setting {name!r} does not exist; {hint}")
    missing = [
        name
        for name, item in known.items()
        if item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
        and name not in values
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be set, in the YAML file or by flag")
    return kind(**values)


def _convert(name: str, value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _convert(name, value, kinds[0])
    if origin is Mapping:
        return _object(name, value)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{name}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
        raise ConfigError(f"{name}: {value!r} is not {_TYPES[hint]}")
    try:
        if hint is Path:
            return Path(value).expanduser()
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        if hint in (int, float):
            return hint(value)
        if hint is str and isinstance(value, str | Path):
            return str(value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name}: {value!r} is not {_TYPES[hint]}")


def _object(name: str, value: Any) -> dict[str, Any]:
    """A JSON object, given as one or as its text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"{name}: {value!r} is not JSON ({error})") from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name}: {value!r} is not a JSON object")
    return dict(value)


def flag_type(hint: Any) -> Any:
    """The type of a setting's flag on a command line: a mapping is given as the text of JSON."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        return flag_type(kinds[0])
    return str if typing.get_origin(hint) is Mapping else hint


def _bound(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    least, most, above = bounds["least"], bounds["most"], bounds["above"]
    # `not value >= least` is true for NaN too.
    if least is not None and not value >= least:
        raise ConfigError(f"{name}: {value} is below {least}")
    if above is not None and not value > above:
        raise ConfigError(f"{name}: {value} must be above {above}")
    if most is not None and not value <= most:
        raise ConfigError(f"{name}: {value} is above {most}")
