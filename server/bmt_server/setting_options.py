"""Options of settings: help text, unit, bounds and command line flag of a field."""

from __future__ import annotations

import math
import re
import typing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

# Units of flags, in the unit of the field.
_FLAG_UNITS = {"MiB": Fraction(1 << 20), "GiB": Fraction(1 << 30), "ms": Fraction(1, 1000)}
_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


class SettingsError(ValueError):
    """A setting is unknown or out of bounds; the message names it, its value and the bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """Help text, unit, bounds and command line flag of one field of `Settings`.

    A field without a flag is derived at start, given by a flag of vLLM's own (`vllm_flag`), or set
    only by programs.
    """

    help: str
    unit: str = ""  # of a number; bounds are in this unit
    flag: str = ""
    flag_unit: str = ""  # of the flag's value, if it is not the field's
    former_flag: str = ""  # still accepted, hidden from the help
    vllm_flag: str = ""
    env: str = ""  # environment variable that is read if the flag is not given
    least: float | None = None
    above: float | None = None
    most: float | None = None
    pattern: str = ""  # of a text

    def to_flag(self, value: Any) -> Any:
        """A value of the field in the flag's unit."""
        if not self.flag_unit:
            return value
        scale = _FLAG_UNITS[self.flag_unit]
        scaled = value * scale.denominator / scale.numerator
        return int(scaled) if scaled.is_integer() else scaled

    def from_flag(self, value: Any) -> Any:
        """A value of the flag in the field's unit."""
        if not self.flag_unit:
            return value
        scale = _FLAG_UNITS[self.flag_unit]
        # Division by 1000 rounds once; multiplication by 0.001 rounds twice.
        return value * scale.numerator / scale.denominator

    def flag_schema(self, kind: Any) -> dict[str, Any]:
        """JSON schema of the flag's value: its choices, or its type and bounds."""
        if typing.get_origin(kind) is Literal:
            return {"enum": [*typing.get_args(kind)]}
        bounds = {"minimum": self.least, "exclusiveMinimum": self.above, "maximum": self.most}
        return {"type": _JSON_TYPES[float if self.flag_unit else kind]} | {
            keyword: self.to_flag(bound) for keyword, bound in bounds.items() if bound is not None
        }

    def amount(self, value: float) -> str:
        """A value as text with its unit, and in the unit of the flag."""
        text = f"{value:.12g}" if self.unit == "fraction" else f"{value:.12g} {self.unit}"
        return f"{text} ({self.to_flag(value):.12g} {self.flag_unit})" if self.flag_unit else text

    def check(self, name: str, value: Any, kind: Any) -> Any:
        """Return `value` as type `kind`. Raises SettingsError for another type or out of bounds."""
        flag = self.flag or self.vllm_flag
        label = f"{name} ({flag})" if flag else name
        choices = typing.get_args(kind)
        if typing.get_origin(kind) is Literal and value not in choices:
            raise SettingsError(f"{label} is {value!r}; it must be one of {', '.join(choices)}")
        if kind in (bool, str) and not isinstance(value, kind):
            raise SettingsError(f"{label} is {value!r}; it must be a {kind.__name__}")
        if kind is str and self.pattern and not re.fullmatch(self.pattern, value):
            raise SettingsError(f"{label} is {value!r}; it must have the form {self.pattern}")
        if kind not in (int, float):
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (kind is int and math.isinf(value)):
            raise SettingsError(f"{label} is {value!r}; it must be a finite number")
        # `not (a >= b)` also rejects NaN.
        if self.least is not None and not value >= self.least:
            bound = f"at least {self.amount(self.least)}"
        elif self.above is not None and not value > self.above:
            bound = f"above {self.amount(self.above)}"
        elif self.most is not None and not value <= self.most:
            bound = f"at most {self.amount(self.most)}"
        else:
            return kind(value)
        raise SettingsError(f"{label} is {self.amount(value)}; it must be {bound}")
