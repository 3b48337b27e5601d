"""Names of data sets: `NAME?key=value&key=value`, several joined by ` + `.

Values are text exactly as written, but for %XX escapes: `?config=no`, `?revision=1.0` and
`?split=train+test` are taken literally. Whoever takes an option converts it by its own type.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal
from urllib.parse import unquote

from bmt_trainer.errors import DataError
from bmt_trainer.settings import expanded

_TYPES = {bool: "true or false", int: "an integer", float: "a number"}
_FLAGS = {"true": True, "false": False}
# Containers, with the elements' type if they have one.
_LISTS: dict[Any, type[Any]] = {list: list, tuple: tuple, set: set, frozenset: frozenset}


def split_names(dataset: str) -> list[str]:
    """The data sets of a mixture's name; a file whose own name has ` + ` is one. Raises DataError.

    A ` + ` within an option's value is written `%20+ `.
    """
    name = dataset.partition("?")[0]
    names = [part.strip() for part in re.split(r"(?<!\S)\+(?!\S)", dataset)]
    if len(names) == 1 or (" + " in name and expanded(name).exists()):
        return [dataset.strip()]
    if not all(names):
        raise DataError(f"{dataset!r}: a data set's name is missing before or after ` + `")
    return names


def parse_name(dataset: str) -> tuple[str, dict[str, str]]:
    """Split a data set's name into the part before `?` and its options, as text.

    An option without `=`, or given twice, raises DataError.
    """
    name, mark, query = dataset.partition("?")
    options: dict[str, str] = {}
    for pair in query.split("&") if mark else ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise DataError(f"{dataset}: options are key=value&key=value, not {pair!r}")
        key = unquote(key)
        if key in options:
            raise DataError(
                f"{dataset}: option {key} is given twice, as {options[key]!r} and "
                f"{unquote(value)!r}; give it once"
            )
        options[key] = unquote(value)
    return name, options


def check_options(name: str, options: Collection[str], known: Collection[str]) -> None:
    """Raise DataError for options that are not known, listing those that are."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(
            f"{name} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(known) or 'no options'}"
        )


def typed(name: str, options: Mapping[str, str], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The options converted to the types that `hints` has for them. Raises DataError."""
    check_options(name, options, hints)
    return {key: convert(f"{name}: {key}", text, hints[key]) for key, text in options.items()}


def keyword_types(function: Any) -> dict[str, Any]:
    """The types of a function's keyword-only parameters, by name."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def field_types(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def convert(place: str, text: str, hint: Any) -> Any:
    """`text` as a value of the type `hint`; lists are JSON, or elements joined by commas.

    place: of the option, for error messages. Raises DataError.
    """
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if len(kinds) < len(typing.get_args(hint)) and text == "null" and str not in kinds:
            return None
        return convert(place, text, kinds[0])
    if origin is Literal:
        choices = {str(choice): choice for choice in typing.get_args(hint)}
        if text not in choices:
            raise DataError(f"{place}: {text!r} is not one of {', '.join(choices)}")
        return choices[text]
    if (origin or hint) in _LISTS or getattr(origin, "__name__", "") == "Sequence":
        return _elements(place, text, hint, _LISTS.get(origin or hint, list))
    if hint is str:
        return text
    try:
        if hint is bool:
            return _FLAGS[text]
        if hint in (int, float):
            # Python's own underscores and blanks are not part of a number.
            if text.strip() != text or "_" in text:
                raise ValueError
            return hint(text)
        if hint in (datetime.date, datetime.time):
            return hint.fromisoformat(text)
        if isinstance(hint, enum.EnumMeta):
            return hint(text)
        return _parsed(text)
    except (KeyError, ValueError):
        raise DataError(f"{place}: {text!r} is not {_TYPES.get(hint) or hint.__name__}") from None


def _elements(place: str, text: str, hint: Any, kind: type[Any]) -> Any:
    kinds = [k for k in typing.get_args(hint) if k is not Ellipsis] or [Any]
    if text.startswith("["):
        try:
            values = json.loads(text)
        except ValueError:
            # Without quotes around text, as in [+,-].
            values = [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
        else:
            return kind(values)
    else:
        values = text.split(",")
    wanted = kinds if len(kinds) == len(values) else kinds[:1] * len(values)
    return kind(
        _parsed(v) if k is Any else convert(place, v, k)
        for v, k in zip(values, wanted, strict=True)
    )


def _parsed(text: str) -> Any:
    """Text as JSON if it is JSON, else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
