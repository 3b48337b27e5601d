"""Rewards as text: `NAME?key=value&key=value`, several joined by ` + `, as data sets are named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bmt_trainer.data.names import convert, parse_name
from bmt_trainer.errors import ConfigError, DataError

#: The text between two rewards.
JOINED = " + "
#: The beginning of the name of a judge on a server.
JUDGE = "judge:"
# Weighted sums are float32 in the trainer.
_LARGEST = 1e9
#: The option of every reward, which the reward itself does not get.
WEIGHT = "weight"


@dataclass(frozen=True)
class Specification:
    """One reward's text, its name, its options without the weight, and its weight in the sum."""

    text: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0


def parse(text: str) -> list[Specification]:
    """The rewards of `A?key=value + B?weight=0.2`. Option values are text. Raises ConfigError."""
    parts = [part.strip() for part in text.split(JOINED)]
    if not all(parts):
        raise ConfigError(f"reward: {text!r} has an empty part; rewards are joined by {JOINED!r}")
    return [_one(part) for part in parts]


def _one(text: str) -> Specification:
    try:
        name, options = parse_name(text)
    except DataError as error:
        raise ConfigError(f"reward {error}") from None
    weight = options.pop(WEIGHT, "1")
    try:
        number = convert("weight", weight, float)
    except DataError:
        number = math.nan
    if not abs(number) <= _LARGEST:  # true for NaN too
        raise ConfigError(
            f"reward {text}: weight {weight!r} is not a finite number of at most {_LARGEST:g}"
        )
    return Specification(text, name, options, number)
