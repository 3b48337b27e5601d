"""Results that are kept: the one of a run, and lines on what they were made with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from bmt_trainer.comparison.plan import Cell
from bmt_trainer.comparison.results import files
from bmt_trainer.comparison.results.files import Result
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.graders import GRADERS
from bmt_trainer.masking.export import library_versions
from bmt_trainer.methods.run_folder import settings_of
from bmt_trainer.rewards.digests import digest
from bmt_trainer.rewards.specification import parse


def result(cell: Cell, say: Callable[[str], None] = lambda text: None) -> Result | None:
    """A cell's kept result, or None if there is none yet.

    A file that is damaged, of another run, or of a build with other defaults does not count, which
    is said. One of an earlier build counts if nothing that this build knew has changed since.
    Raises DataError if the data cannot be read to compare it.
    """
    for path, key in ((cell.file, json.loads(cell.key)), (cell.earlier, None)):
        if not path.exists():
            continue
        try:
            found = files.read(path)
        except DataError as error:
            say(f"{error}; the run is computed again")
            continue
        if found.get("key") == key:
            if not (others := _other_defaults(cell, found)):
                return found
            say(f"{path} was made with {', '.join(others)}; the run is computed again")
        elif key is not None:
            say(f"{path} is the result of another run; this one is computed")
    return None


def _other_defaults(cell: Cell, found: Result) -> list[str]:
    """Settings that the plan leaves at their defaults, and that were others in the result."""
    now = json.loads(json.dumps(settings_of(cell.config()), default=str))
    given = {**cell.plan.settings, **cell.changes}
    return [
        f"{name} {value}, where the default is {now[name]} now"
        for name, value in found["settings"].items()
        if name in now and name not in given and value != now[name]
    ]


def exists(cell: Cell) -> bool:
    """True if there is a file of the cell's result."""
    return cell.file.exists() or cell.earlier.exists()


def lines(kept: Sequence[Result], total: int) -> Iterator[str]:
    """Lines on the results that a comparison of `total` runs takes as they are."""
    if not kept:
        return
    yield f"{len(kept)} of {total} results were there before"
    found = Counter(entry for one in kept for entry in one.get("versions", {}).items())
    here = library_versions(*dict.fromkeys(name for name, _ in found))
    for (name, version), count in found.items():
        if version != here[name]:
            yield f"{count} of them made with {name} {version}; here it is {here[name]}"
    if changed := sum(map(_graded_otherwise, kept)):
        yield f"{changed} of them by graders whose code has changed since"
    for one in kept:
        for name, why in one.get("failed", {}).items():
            yield (
                f"{one['method']} on {one['dataset']} has no {name}, which failed ({why}); remove "
                "its file to compute it again"
            )
    if earlier := sum("key" not in one for one in kept):
        yield (
            f"{earlier} of them of an earlier build, which compared neither the model's "
            "configuration and tokenizer nor commits of the Hub and evaluation sets; remove their "
            "files to compute them again"
        )


def _graded_otherwise(one: Result) -> bool:
    """True if a grader's code is not what it was; rewards of users are in the key."""
    settings, contents = one["settings"], one.get("contents", {})
    named = {n: str(settings[n]) for n in ("reward", "grader") if n in contents and settings.get(n)}
    return any(
        digest(text) != contents[name]
        for name, text in named.items()
        if all(part.name in GRADERS for part in parse(text))
    )
