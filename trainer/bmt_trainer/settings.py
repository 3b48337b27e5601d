"""Settings dataclasses: fields with help and bounds, read from YAML, overridden by flags."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from bmt_trainer.errors import ConfigError

T = TypeVar("T")

_BOOLEANS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_LARGEST = 3.4e38
# Types of settings, as error messages name them.
_TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    joined: bool = False,
    flags: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with a help text and bounds; `above` excludes its bound.

    joined: a list of texts is taken as one text with ` + ` between them; flags: of the command
    line, in place of the one by the field's name.
    """
    bounds = {"least": least, "most": most, "above": above}
    metadata = {"help": help, "joined": joined, "flags": flags, **bounds}
    return dataclasses.field(default=default, metadata=metadata)


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

    Text becomes a number if the field is one, and a number of a YAML file the text that it was
    written as if the field is text. Raises ConfigError.
    """
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        if item.name in skip:
            continue
        value = getattr(config, item.name)
        if item.metadata["joined"] and isinstance(value, list | tuple):
            value = _join(item.name, value)
        value = _convert(item.name, value, hints[item.name])
        _bound(item.name, value, item.metadata)
        object.__setattr__(config, item.name, value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, by the rules of `parse_yaml`. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    try:
        values = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold `setting: value` lines")
    return values


class Integer(int):
    """An integer of a YAML file; text: as it is written there."""

    text: str


class Number(float):
    """A number of a YAML file; text: as it is written there."""

    text: str


class _Loader(yaml.SafeLoader):
    """YAML with the core schema of YAML 1.2: `no`, `on`, 1:30 and dates are text, 5e-4 a number."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def pairs(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a key that is given twice raises ConstructorError."""
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, str | int | float | None) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is set twice, in lines {seen[key]} and {line}"
                )
            if isinstance(key, str | int | float | None):
                seen[key] = line
        self.flatten_mapping(node)
        return self.construct_mapping(node, deep)

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """A boolean or a number, which keeps its text."""
        text = node.value
        if node.tag.endswith(":bool"):
            if text not in _BOOLEANS:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{text!r} is neither true nor false", node.start_mark
                )
            return _BOOLEANS[text]
        if node.tag.endswith(":int"):
            value: Any = Integer(text, 0 if text[:2] in ("0x", "0o") else 10)
        else:
            value = Number(re.sub(r"(?i)\.(inf|nan)", r"\1", text))
        value.text = text
        return value


_TAG = "tag:yaml.org,2002:"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "|".join(_BOOLEANS), list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})\\Z"), _first)
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(_TAG + _kind, _Loader.scalar)
_Loader.add_constructor(_TAG + "map", _Loader.pairs)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text by YAML 1.2's core schema, in which `no`, `on` and dates are text.

    Numbers keep the text they were written as (`Integer`, `Number`). A key that is given twice
    raises ConfigError with its lines, as other malformed text does.
    """
    try:
        # Also refuses characters that YAML does not have.
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    # Constructors of explicit tags, such as `!!bool yes`, raise errors of several kinds.
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError) as error:
        raise ConfigError(" ".join(str(error).split())) from None


# Settings of TRL's trainers that have other names here.
_OF_TRL = {
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "max_seq_length": "max_length",
    "eval_dataset": "validation_dataset",
    "reward_funcs": "reward",
    "resume_from_checkpoint": "resume",
}


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """An instance of `kind`. Raises ConfigError for an unknown or missing setting."""
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            close = [n for n in [_OF_TRL.get(name)] if n in known]
            close = close or difflib.get_close_matches(name, known, 1)
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


def _join(name: str, values: Collection[Any]) -> str:
    if not values or not all(isinstance(value, str | Integer | Number) for value in values):
        raise ConfigError(f"{name}: {values!r} is not text or a list of texts")
    return " + ".join(getattr(value, "text", value) for value in values)


def _convert(name: str, value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _convert(name, value, kinds[0])
    if origin is Mapping:
        return check_object(name, value)
    if origin is Literal:
        choices = typing.get_args(hint)
        value = as_written(value)
        if value not in choices:
            raise ConfigError(f"{name}: {value!r} is not one of {', '.join(map(str, choices))}")
        return value
    if hint in (str, Path):
        value = as_written(value)
    elif hint is bool and isinstance(value, str):
        value = _BOOLEANS.get(value, value)
    if hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
        raise ConfigError(f"{name}: {value!r} is not {_TYPES[hint]}")
    try:
        if hint is Path:
            return expanded(value)
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        if hint in (int, float):
            return hint(value)
        if hint is str and isinstance(value, str | Path):
            return str(value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name}: {value!r} is not {_TYPES[hint]}")


def check_object(name: str, value: Any) -> dict[str, Any]:
    """A JSON object, given as one or as its text. Raises ConfigError."""
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=_once, parse_constant=_no_constant)
        except ValueError as error:
            raise ConfigError(f"{name}: {value!r} is not JSON ({error})") from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name}: {value!r} is not a JSON object")
    return dict(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice")
    return made


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~`. Raises ConfigError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # an unknown user, or none without HOME
        raise ConfigError(
            f"{path}: there is no home folder for {Path(path).parts[0]}; write the whole path"
        ) from None


def flag_type(hint: Any) -> Any:
    """The type of a setting's flag on a command line: a mapping is given as the text of JSON."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        return flag_type(kinds[0])
    return str if typing.get_origin(hint) is Mapping else hint


def as_written(value: Any) -> Any:
    """The text of a YAML file's number or boolean; any other value as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return getattr(value, "text", value)


def _bound(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    least, most, above = bounds["least"], bounds["most"], bounds["above"]
    if isinstance(value, float) and math.isinf(value):
        raise ConfigError(f"{name}: {value} is not a finite number")
    if isinstance(value, float) and abs(value) > _LARGEST:
        raise ConfigError(f"{name}: {value} is above {_LARGEST:g}, the largest number of float32")
    if isinstance(value, int) and abs(value) > sys.maxsize:
        raise ConfigError(f"{name}: {value} is above {sys.maxsize}")
    # `not value >= least` is true for NaN too.
    if least is not None and not value >= least:
        raise ConfigError(f"{name}: {value} is below {least}")
    if above is not None and not value > above:
        raise ConfigError(f"{name}: {value} must be above {above}")
    if most is not None and not value <= most:
        raise ConfigError(f"{name}: {value} is above {most}")
