"""Splits of examples by prompt, of a list or of a stream, and mixtures of several data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from random import Random

from bmt_trainer.data.examples import Counts, Example, Split
from bmt_trainer.data.fitting import LengthBound
from bmt_trainer.errors import DataError

# Reasons for which a row is in neither part of a split.
ANOTHER_ANSWER = "other answers of held-out prompts"
NOT_NEEDED = "beyond the run's training examples"
ALSO_HELD_OUT = "prompts that another source holds out"
SHARES = "so that the sources have their shares"
TOO_LONG = "longer than max_length"
# Repeated prompts, or prompts that are too long, in a row after which a generator is exhausted.
_MOST_REPEATS = 1000


def of_list(
    examples: Iterable[Example],
    *,
    heldout: int,
    train: int,
    seed: int,
    share: float | None,
    name: str,
    bound: LengthBound | None = None,
    duplicates: bool = False,
) -> Split:
    """Shuffle the prompts, hold out `heldout` of them, and take at most `train` rows of the others.

    Of a held-out prompt with several rows the last one counts, of labeled answers the last of each
    label. share: fraction of the prompts to hold out instead; bound: of training rows; duplicates:
    split rows, also those of one prompt, as tables 9 and 10 of the paper count. Raises DataError.
    """
    # Departure: different prompts are split, so sets that repeat some are smaller than table 9's.
    by_prompt: dict[str, list[Example]] = {}
    rows = 0
    for example in examples:
        by_prompt.setdefault(str(rows) if duplicates else example.key, []).append(example)
        rows += 1
    groups = list(by_prompt.values())
    if share is not None:
        heldout = len(groups) - int(len(groups) * (1 - share))
    if len(groups) < heldout + (train > 0):
        raise DataError(
            f"{name} has {len(groups)} different prompts, and {heldout} are to be held out; "
            "hold out fewer: set heldout (0: none), or heldout_share (the paper: 0.25)"
        )
    Random(seed).shuffle(groups)
    held = [example for group in groups[:heldout] for example in _last(group)]
    others = sum(map(len, groups[heldout:]))
    kept, long = _taken(_in_turn(groups[heldout:]), train, bound)
    dropped = {
        ANOTHER_ANSWER: sum(map(len, groups[:heldout])) - len(held),
        TOO_LONG: long,
        NOT_NEEDED: others - len(kept) - long,
    }
    repeated = sum(len(group) - len({_value(e) for e in group}) for group in groups)
    notes = (_leaked(kept, held, name),) if duplicates else ()
    return Split(kept, held, Counts(rows, len(groups), repeated, dropped, notes))


def _leaked(train: Sequence[Example], heldout: Sequence[Example], name: str) -> str:
    """A line on held-out rows whose prompts are trained on."""
    prompts = {example.key for example in train}
    both = sum(example.key in prompts for example in heldout)
    return (
        f"data: duplicates of {name} are kept: {both:,} of {len(heldout):,} held-out rows "
        f"({both / max(len(heldout), 1):.1%}) have a prompt that is trained on"
    )


def _last(group: Iterable[Example]) -> list[Example]:
    """The last row of a prompt, or of each label."""
    return list({example.wanted: example for example in group}.values())


def _taken(
    examples: Iterable[Example], train: int, bound: LengthBound | None
) -> tuple[list[Example], int]:
    """The first `train` examples within the bound, and the number of those left out before."""
    kept: list[Example] = []
    long = 0
    for example in examples:
        if len(kept) == train:
            break
        if bound is None or bound.fits(example):
            kept.append(example)
        else:
            long += 1
    return kept, long


def _value(example: Example) -> str:
    """The answer as text, equal for equal answers."""
    parts = (example.answer, example.reply, example.demonstration, example.learnt)
    return repr((*parts, example.rejected, example.wanted))


def _in_turn(groups: Sequence[Sequence[Example]]) -> Iterator[Example]:
    """A row of each prompt, then a second row of each that has one, and so on."""
    at = 0
    while groups:
        yield from (group[at] for group in groups)
        at += 1
        groups = [group for group in groups if len(group) > at]


def of_stream(
    examples: Iterator[Example],
    *,
    heldout: int,
    train: int,
    seed: int,
    buffer: int,
    name: str,
    bound: LengthBound | None = None,
) -> Split:
    """Hold out the first prompts of a shuffled stream, and take the rows after them for training.

    Reads `heldout` prompts, `train` rows of others and `buffer` rows ahead, from which the next
    row is drawn, and as many more as the bound leaves out. Raises DataError.
    """
    count = _Counted(examples)
    held: dict[str, dict[bool | None, Example]] = {}
    kept: list[Example] = []
    prompts: set[str] = set()
    others = long = 0
    for example in _shuffled(count, buffer, Random(seed)):
        if len(held) == heldout and len(kept) == train:
            break
        key = example.key
        prompts.add(key)
        if key in held:
            others += example.wanted in held[key]
            held[key].setdefault(example.wanted, example)
        elif len(held) < heldout:
            held[key] = {example.wanted: example}
        elif bound is None or bound.fits(example):
            kept.append(example)
        else:
            long += 1
        if len(held) == heldout and len(kept) == train:
            break
    if len(held) < heldout or (train and not kept and not long):
        raise DataError(
            f"{name} has {len(prompts)} different prompts, and {heldout} are to be held out; "
            "hold out fewer: set heldout (0: none)"
        )
    set_aside = [example for labels in held.values() for example in labels.values()]
    taken = len(set_aside) + len(kept) + others + long
    note = f"data: streamed {name}, {count.rows:,} rows read, drawn from {buffer:,} rows at a time"
    dropped = {
        ANOTHER_ANSWER: others,
        TOO_LONG: long,
        "read ahead for the shuffle": count.rows - taken,
    }
    return Split(kept, set_aside, Counts(count.rows, len(prompts), 0, dropped, (note,)))


def of_generator(
    examples: Iterable[Example],
    *,
    heldout: int,
    train: int,
    name: str,
    bound: LengthBound | None = None,
) -> Split:
    """The first examples with different prompts, `heldout` to hold out, then `train` in the bound.

    Ends with fewer for training after _MOST_REPEATS that are too long. Raises DataError.
    """
    seen: set[str] = set()
    held: list[Example] = []
    kept: list[Example] = []
    repeats = long = in_a_row = 0
    for example in examples:
        enough = len(held) + len(kept) == heldout + train
        if enough or _MOST_REPEATS in (repeats, in_a_row):
            break
        if example.key in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(example.key)
        if len(held) < heldout:
            held.append(example)
        elif bound is None or bound.fits(example):
            kept.append(example)
            in_a_row = 0
        else:
            long, in_a_row = long + 1, in_a_row + 1
    if len(held) + len(kept) < heldout + train and in_a_row < _MOST_REPEATS:
        raise DataError(
            f"{name} gives only {len(seen)} different prompts and {heldout + train} are needed; "
            "widen its options or request fewer"
        )
    return Split(kept, held, Counts(len(seen), len(seen), 0, {TOO_LONG: long}))


class _Counted:
    """An iterator that counts."""

    def __init__(self, examples: Iterator[Example]) -> None:
        self._examples, self.rows = examples, 0

    def __iter__(self) -> Iterator[Example]:
        return self

    def __next__(self) -> Example:
        example = next(self._examples)
        self.rows += 1
        return example


def _shuffled(examples: Iterable[Example], buffer: int, random: Random) -> Iterator[Example]:
    """The examples, each drawn from the next `buffer` ones; 0: in their order."""
    waiting: list[Example] = []
    for example in examples:
        if len(waiting) < buffer:
            waiting.append(example)
            continue
        if not waiting:
            yield example
            continue
        at = random.randrange(len(waiting))
        waiting[at], example = example, waiting[at]
        yield example
    random.shuffle(waiting)
    yield from waiting


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in integer parts in proportion to the weights, by largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [int(value) for value in exact]
    order = sorted(range(len(weights)), key=lambda i: parts[i] - exact[i])
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def mixed(
    splits: Sequence[Split],
    weights: Sequence[float],
    names: Sequence[str],
    *,
    train: int,
    endless: bool,
    seed: int,
) -> Split:
    """One split of several: training rows in proportion to the weights, in random order.

    endless: a source gives as many rows as it is asked for, so there are `train` rows, and not only
    as many as the sources have together. A source with too few rows gives them several times. A row
    whose prompt another source holds out is left out. Raises DataError.
    """
    heldout = {(e.key, e.wanted): e for split in splits for e in split.heldout}
    held = {key for key, _ in heldout}
    sources = [[e for e in split.train if e.key not in held] for split in splits]
    both = sum(len(s.train) for s in splits) - sum(map(len, sources))
    total = train if endless else min(train, sum(map(len, sources)))
    counts = apportion(total, weights)
    kept: list[Example] = []
    notes = [note for split in splits for note in split.counts.notes]
    unused = 0
    for source, rows, wanted in zip(names, sources, counts, strict=True):
        if wanted and not rows:
            raise DataError(f"{source} has no rows for training, and its weight asks for {wanted}")
        kept += [rows[i % len(rows)] for i in range(wanted)]
        times = f", each up to {-(-wanted // len(rows))} times" if wanted > len(rows) else ""
        share = wanted / total if total else 0.0
        used = min(wanted, len(rows))
        notes.append(
            f"data: {wanted:,} training rows ({share:.1%}) of {used:,} rows of {source}{times}"
        )
        unused += len(rows) - used
    Random(seed).shuffle(kept)
    dropped = {ALSO_HELD_OUT: both}
    for split in splits:
        for why, n in split.counts.dropped.items():
            dropped[why] = dropped.get(why, 0) + n
    dropped[SHARES] = unused
    prompts = len({e.key for s in splits for e in s.train} | held)
    rows_read = sum(split.counts.rows for split in splits)
    repeated = sum(split.counts.repeated for split in splits)
    return Split(
        kept,
        list(heldout.values()),
        Counts(rows_read, prompts, repeated, dropped, tuple(notes)),
    )


def with_heldout(split: Split, other: Split) -> Split:
    """The training rows of `split`, without prompts of the held-out ones of `other`, and those."""
    keys = {example.key for example in other.heldout}
    train = [example for example in split.train if example.key not in keys]
    dropped = {**split.counts.dropped, ALSO_HELD_OUT: len(split.train) - len(train)}
    return Split(train, other.heldout, replace(split.counts, dropped=dropped))
