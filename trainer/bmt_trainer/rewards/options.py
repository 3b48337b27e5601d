"""Options of a reward: text, converted to the types of the parameters that take them."""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bmt_trainer.data.names import convert
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.settings import expanded

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
        except (ValueError, DataError) as error:
            why = str(error).removeprefix(": ")
            raise ConfigError(f"reward {text}: option {key}: {why}") from None
    return values


def _hints(taker: Callable[..., Any]) -> dict[str, Any]:
    made: Any = taker.__init__ if inspect.isclass(taker) else taker  # type: ignore[misc]
    try:
        return typing.get_type_hints(made)
    except Exception:  # a name that exists for type checkers only: types of the defaults then
        return {}


def _convert(value: str, hint: Any) -> Any:
    """`value` as `hint`: as options of data sets are, and paths. Raises ValueError, DataError."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _convert_union(value, typing.get_args(hint))
    if hint is Path:
        return expanded(value)
    if hint in (str, Any, object):
        return value
    plain = (bool, int, float, list, tuple, set, frozenset)
    if hint not in plain and typing.get_origin(hint) not in (*plain, Sequence, Literal):
        raise ValueError(f"a parameter of type {getattr(hint, '__name__', hint)} takes no text")
    number = convert("", value, hint)
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _convert_union(value: str, kinds: tuple[Any, ...]) -> Any:
    if type(None) in kinds and str not in kinds and value in ("null", "none"):
        return None
    failed = ""
    # Text last: it takes everything.
    for kind in sorted((k for k in kinds if k is not type(None)), key=lambda k: k is str):
        try:
            return _convert(value, kind)
        except (ValueError, DataError) as error:
            failed = failed or str(error)
    raise ValueError(failed)
