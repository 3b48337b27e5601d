"""Counts of a data set as a model's training rows: what `bmt-train data` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from statistics import median
from typing import Any

from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Counts, Example
from bmt_trainer.data.fitting import Fitted, Overlong, fit
from bmt_trainer.data.labeled import LabelEncoder
from bmt_trainer.data.pairs import PairEncoder
from bmt_trainer.errors import DataError


@dataclass(frozen=True)
class Spread:
    """The total of some numbers, and their least, median and most."""

    total: int
    least: int
    median: float
    most: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """The spread of `values`; all zeros if there are none."""
        if not values:
            return cls(0, 0, 0, 0)
        return cls(sum(values), min(values), median(values), max(values))


@dataclass(frozen=True)
class Report:
    """The use that a run makes of a data set's rows.

    counts: of the rows read; fitted: the training rows; locations: of each that was encoded;
    refused: the rows that cannot be kept, as error messages; turns: learnt stretches of the
    training rows; context, learnt: tokens of the training rows; notes: lines on what was changed.
    """

    counts: Counts
    fitted: Fitted
    locations: Sequence[str]
    refused: Sequence[str]
    turns: int
    context: Spread
    learnt: Spread
    notes: Sequence[str] = field(default_factory=tuple)

    def shown(self, count: int) -> Iterator[tuple[str, dict[str, list[int]]]]:
        """Location and row of the first training rows."""
        for at, row in zip(self.fitted.kept[:count], self.fitted.rows, strict=False):
            yield self.locations[at], row

    def lines(self) -> list[tuple[str, str]]:
        """The counts by name, as text."""
        counts, fitted = self.counts, self.fitted
        repeated = f", {counts.repeated:,} rows repeat another" if counts.repeated else ""
        rows = [
            ("rows read", f"{counts.rows:,}{repeated}"),
            ("different prompts", f"{counts.prompts:,}"),
        ]
        if self.refused:
            rows.append(("refused", f"{len(self.refused):,}"))
        dropped = {k: n for k, n in (*counts.dropped.items(), *fitted.dropped.items()) if n}
        rows += [("left out", f"{n:,}, {reason}") for reason, n in dropped.items()]
        rows.append(("longer than max_length", f"{fitted.overlong:,}"))
        if fitted.truncated:
            rows.append(("truncated", f"{fitted.truncated:,}"))
        rows += [
            ("training rows", f"{len(fitted.rows):,}"),
            ("learnt turns", f"{self.turns:,}"),
            ("tokens read as context", _numbers(self.context)),
            ("tokens learnt", _numbers(self.learnt)),
        ]
        return rows

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {
            "rows": self.counts.rows,
            "prompts": self.counts.prompts,
            "repeated": self.counts.repeated,
            "left_out": {
                k: n for k, n in (*self.counts.dropped.items(), *self.fitted.dropped.items()) if n
            },
            "refused": list(self.refused),
            "overlong": self.fitted.overlong,
            "truncated": self.fitted.truncated,
            "training_rows": len(self.fitted.rows),
            "learnt_turns": self.turns,
            "tokens": {"context": asdict(self.context), "learnt": asdict(self.learnt)},
            "notes": list(self.notes),
        }


def _numbers(spread: Spread) -> str:
    return (
        f"{spread.total:,}; a row {spread.least:,} to {spread.most:,}, median {spread.median:,.0f}"
    )


def of_examples(
    examples: Sequence[Example],
    counts: Counts,
    encoder: Encoder | PairEncoder | LabelEncoder,
    *,
    max_length: int,
    overlong: Overlong,
    prompts_only: bool = False,
) -> Report:
    """Encode and fit all examples, as a run does.

    encoder: of pairs or of labeled answers for a method that learns from these; a pair is two rows,
    which are kept or left out together. prompts_only: the examples' prompts alone, of which nothing
    is learnt, as the methods read them that train on the model's own answers. Raises DataError for
    `overlong: error`; other rows that cannot be kept are in the report.
    """
    rows: list[Mapping[str, list[int]]] = []
    locations: list[str] = []
    refused: list[str] = []
    together: list[int] = []
    for example in examples:
        try:
            made = _rows(example, encoder, prompts_only)
        except DataError as error:
            refused.append(str(error))
            continue
        rows += [row for _, row in made]
        locations += [where for where, _ in made]
        together.append(len(made))
    if prompts_only or not isinstance(encoder, Encoder):
        fitted = _whole(rows, max_length, together)
    else:
        fitted = fit(rows, max_length, overlong, locations)
    learnt = [sum(row["completion_mask"]) for row in fitted.rows]
    sizes = [len(row["input_ids"]) for row in fitted.rows]
    return Report(
        counts=counts,
        fitted=fitted,
        locations=locations,
        refused=refused,
        turns=sum(_learnt_runs(row["completion_mask"]) for row in fitted.rows),
        context=Spread.of([size - n for size, n in zip(sizes, learnt, strict=True)]),
        learnt=Spread.of(learnt),
        notes=encoder.lines(),
    )


def _rows(
    example: Example, encoder: Encoder | PairEncoder | LabelEncoder, prompts_only: bool
) -> list[tuple[str, Mapping[str, list[int]]]]:
    """The rows of an example, each with its location."""
    where, checked = example.location, encoder.checked(example)
    if isinstance(encoder, PairEncoder):
        pair = encoder.encode(checked)
        both = (("chosen", pair.chosen), ("rejected", pair.rejected))
        return [(f"{where}, {name}" if where else name, row.columns) for name, row in both]
    if isinstance(encoder, LabelEncoder):
        answers = [("wanted" if a.wanted else "unwanted", a.row) for a in encoder.encode(checked)]
        return [(f"{where}, {name}" if where else name, row.columns) for name, row in answers]
    if prompts_only:
        ids = encoder.prompt(checked)
        return [(where, {"input_ids": ids, "completion_mask": [0] * len(ids)})]
    return [(where, row.columns) for row in encoder.encode(checked)]


def _whole(
    rows: Sequence[Mapping[str, list[int]]], max_length: int, together: Sequence[int]
) -> Fitted:
    """Rows of at most `max_length` tokens; none is cut.

    together: numbers of consecutive rows that share their fate.
    """
    kept: list[int] = []
    first = longer = 0
    for size in together:
        group = range(first, first + size)
        first += size
        if all(len(rows[i]["input_ids"]) <= max_length for i in group):
            kept += group
        else:
            longer += 1
    reason = f"longer than max_length, {max_length:,} tokens"
    return Fitted([dict(rows[at]) for at in kept], kept, longer, 0, {reason: longer})


def _learnt_runs(mask: Sequence[int]) -> int:
    """The number of runs of learnt tokens."""
    return sum(1 for learnt, _ in groupby(mask, bool) if learnt)
