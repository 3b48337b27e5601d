"""Rows that are tokenized already, in TRL's form. Legend: S tokens of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bmt_trainer.data.examples import Example, Tokens
from bmt_trainer.errors import DataError

# Columns that say which tokens are learnt.
_MASKS = ("labels", "completion_mask", "assistant_masks")


def example_of(row: Mapping[str, Any], location: str) -> Example:
    """The example of `input_ids` [S] and masks of what is learnt [S]. Raises DataError.

    Ids are compared with the vocabulary when they are encoded.
    """
    ids = _integers(row["input_ids"], f"{location}: input_ids")
    if not ids:
        raise DataError(f"{location}: input_ids: no tokens")
    learnt = [True] * len(ids)
    for key in (key for key in (*_MASKS, "attention_mask") if key in row):
        values = _integers(row[key], f"{location}: {key}")
        if len(values) != len(ids):
            raise DataError(
                f"{location}: {key}: {len(values)} values for {len(ids)} tokens of input_ids"
            )
        for at, (token, value) in enumerate(zip(ids, values, strict=True)):
            if key != "labels" and value not in (0, 1):
                raise DataError(f"{location}: {key}[{at}]: {value} is neither 0 nor 1")
            if key == "labels" and value not in (-100, token):
                raise DataError(
                    f"{location}: labels[{at}]: {value} is neither -100 nor input_ids[{at}], "
                    f"{token}; labels are not shifted"
                )
            if key == "attention_mask" and not value:
                raise DataError(
                    f"{location}: attention_mask[{at}]: 0; leave padding out of input_ids"
                )
            learnt[at] &= value != -100 if key == "labels" else bool(value)
    # The first token is predicted by nothing.
    if not any(learnt[1:]):
        raise DataError(f"{location}: {_masks(row)}: no token is learnt")
    return Example("", "", tokens=Tokens(tuple(ids), tuple(learnt)))


def _masks(row: Mapping[str, Any]) -> str:
    return ", ".join(key for key in _MASKS if key in row) or "input_ids"


def _integers(value: Any, where: str) -> list[int]:
    ok = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not ok or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
        raise DataError(f"{where}: expected a list of integers")
    return list(value)
