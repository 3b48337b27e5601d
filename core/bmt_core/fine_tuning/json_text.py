"""JSON as rows of training data have it: no key twice, and no number that is none."""

from __future__ import annotations

import json
import math
from typing import Any

from bmt_core.errors import RowError


def parse_json(text: str, location: str) -> Any:
    """The JSON value of `text`. A key given twice, NaN and Infinity raise RowError."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_number,
        )
    except RecursionError:
        raise RowError(f"{location}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise RowError(f"{location}: not JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return made


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value; write null or text")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return value
