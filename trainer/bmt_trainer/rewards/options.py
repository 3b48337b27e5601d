"""Options of a reward: text, converted to the types of the parameters that take them."""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from bmt_trainer.errors import ConfigError

_EMPTY = inspect.Parameter.empty
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def arguments(
    taker: Callable[..., Any], options: Mapping[str, str], text: str, taken: Collection[str] = ()
) -> dict[str, Any]:
    """Keyword arguments of `taker` from options, each converted by the parameter's annotation.

    Without an annotation, by the type of its default; without that, text. text: the reward, for
    error messages; taken: parameters that are not options. Raises ConfigError.
    """
    if not options:
        return {}
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(taker).parameters.items()
        if parameter.kind in _NAMED and name not in taken
    }
    hints = _hints(taker)
    values = {}
    for key, value in options.items():
        if key not in parameters:
            close = difflib.get_close_matches(key, [*parameters, "weight"], 1)
            known = ", ".join([*parameters, "weight"])
            hint = f"did you mean {close[0]}?" if close else f"options: {known}"
            raise ConfigError(f"reward {text}: no option {key!r}; {hint}")
        default = parameters[key].default
        by_default = str if default is _EMPTY or default is None else type(default)
        try:
            values[key] = _convert(value, hints.get(key, by_default))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"reward {text}: option {key}={value}: {error}") from None
    return values


def _hints(taker: Callable[..., Any]) -> dict[str, Any]:
    made: Any = taker.__init__ if inspect.isclass(taker) else taker  # type: ignore[misc]
    try:
        return typing.get_type_hints(made)
    except Exception:  # a name that exists for type checkers only: types of the defaults then
        return {}


def _convert(value: str, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(value, typing.get_args(hint))
    if origin is Literal:
        for choice in typing.get_args(hint):
            if str(choice) == value:
                return choice
        raise ValueError(f"not one of {', '.join(map(str, typing.get_args(hint)))}")
    if origin in (list, tuple) or hint in (list, tuple):
        kind = (typing.get_args(hint) or (str,))[0]
        parts = [_convert(part.strip(), kind) for part in value.split(",")]
        return parts if (origin or hint) is list else tuple(parts)
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError("not true or false")
        return value.lower() == "true"
    if hint is int:
        return _number(value, int, "an integer")
    if hint is float:
        return _number(value, float, "a finite number")
    if hint is Path:
        return Path(value).expanduser()
    if hint in (str, Any, object):
        return value
    raise TypeError(f"a parameter of type {getattr(hint, '__name__', hint)} takes no text")


def _convert_union(value: str, kinds: tuple[Any, ...]) -> Any:
    if type(None) in kinds and str not in kinds and value.lower() in ("none", "null"):
        return None
    failed = ""
    # Text last: it takes everything.
    for kind in sorted((k for k in kinds if k is not type(None)), key=lambda k: k is str):
        try:
            return _convert(value, kind)
        except (ValueError, TypeError) as error:
            failed = failed or str(error)
    raise ValueError(failed)


def _number(value: str, kind: type[int] | type[float], name: str) -> int | float:
    try:
        number = kind(value)
    except ValueError:
        raise ValueError(f"not {name}") from None
    if not math.isfinite(number):
        raise ValueError(f"not {name}")
    return number
