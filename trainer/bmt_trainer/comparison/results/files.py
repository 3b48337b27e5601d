"""Files of results: written whole or not at all, and read with a reason for those that cannot be.

A result is one JSON object. `format` counts changes of its fields; files without it are of builds
before 0.1.0 and have neither `key` nor `contents`. `checksum` is that of the other fields.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import CLOSED_GATES

Result = dict[str, Any]

#: The form of results that this build writes.
FORMAT = 2
_TEXT = ("method", "model", "dataset", "trainer", "right")
_TRACKED = ("step", CLOSED_GATES, "kl_token", "kl_sequence")
_RETAINED = ("retention", "retention_lenient")
_BEST = ("step", "heldout")
_MEANS = ("modules", "updated", "effective_rank", "spectrum_drift", "overlap", "changed")


def read(path: Path) -> Result:
    """Read a result. Raises DataError with the reason if it is damaged or has other fields."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if (why := fault(value)) is not None:
        raise DataError(f"{path}: {why}")
    return {"changes": {}, "settings": {}, **_without_checksum(_named_now(value))}


def write(path: Path, result: Mapping[str, Any]) -> Result:
    """Write a result with its form and checksum, and return it as `read` does."""
    whole: Result = json.loads(json.dumps({"format": FORMAT, **result}))
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps({**whole, "checksum": _checksum(whole)}, indent=1) + "\n")
    os.replace(scratch, path)
    return _named_now(whole)


def read_all(paths: Sequence[Path], say: Callable[[str], None]) -> list[Result]:
    """Read the results among files and in folders.

    A file in a folder that is no result of this form is left out, which `say` shows in a line; one
    that is named must be one. One that is given twice counts once. Raises DataError for a named
    file that is none, and if no result is left.
    """
    found: dict[Path, Result] = {}
    for given in paths:
        if not given.is_dir():
            found[given.resolve()] = read(given)
            continue
        for path in sorted(given.glob("*.json")):
            if path.name.endswith(".history.json") or _is_other(path):
                continue
            try:
                found[path.resolve()] = read(path)
            except DataError as error:
                say(f"left out: {error}")
    if not found:
        raise DataError(
            f"no results in {', '.join(map(str, paths))}; bmt-train compare writes them"
        )
    return list(found.values())


def fault(value: Any) -> str | None:
    """The reason why a JSON value is not a result; None for a result."""
    if not isinstance(value, dict):
        return "not a result"
    if missing := [name for name in (*_TEXT, "size_bytes") if name not in value]:
        return f"no result, or of an older build: it has no {', '.join(missing)}"
    if isinstance(form := value.get("format", 1), bool) or not isinstance(form, int):
        return f"format {form!r} is not a number"
    if form > FORMAT:
        return f"format {form}, of a newer build; this one reads up to {FORMAT}"
    if "checksum" in value and value["checksum"] != _checksum(value):
        return "its content is not what was written: the checksum differs"
    return next(_faults(_named_now(value)), None)


def _faults(value: Mapping[str, Any]) -> Iterator[str]:
    for name in _TEXT:
        if not isinstance(value[name], str):
            yield f"{name} is not text"
    if set(value["right"]) - {"0", "1"}:
        yield "right has other characters than 0 and 1"
    if not (_is_number(value["size_bytes"]) and _is_number(value.get("disk_bytes", 0))):
        yield "size_bytes or disk_bytes is not a number"
    for name in ("changes", "settings", "versions", "logs", "contents", "key", "failed"):
        if not isinstance(value.get(name, {}), dict):
            yield f"{name} is not an object"
            return
    if not _is_seed(value.get("settings", {}).get("seed", 0)):
        yield "seed is not an integer"
    named = (value.get(name, {}) for name in ("contents", "versions"))
    texts = (value.get("fingerprint"), *(text for one in named for text in one.values()))
    if not all(text is None or isinstance(text, str) for text in texts):
        yield "fingerprint, contents or versions have an entry that is not text"
    closed = value.get("logs", {}).get(CLOSED_GATES) or []
    if not (isinstance(closed, list) and all(map(_is_number, closed))):
        yield f"logs has {CLOSED_GATES} that are not numbers"
    if (score := value.get("score")) and not (value["right"] and _is_score(score)):
        yield "its score is not of answers"
    rows = value.get("track") or []
    if not isinstance(rows, list) or any(
        not isinstance(row, dict) or not all(_is_number(row.get(n)) for n in _TRACKED)
        for row in rows
    ):
        yield f"track has a row without the numbers {', '.join(_TRACKED)}"
    elif any(not _is_number(row.get(name, 0)) for row in rows for name in _RETAINED):
        yield f"track has a row whose {' or '.join(_RETAINED)} is not a number"
    best = value.get("best")
    if best and not (isinstance(best, dict) and all(map(_is_number, map(best.get, _BEST)))):
        yield f"best has no numbers {' and '.join(_BEST)}"
    if best and rows and not _is_number(rows[-1].get("heldout", 0)):
        yield "track has a row whose heldout is not a number"
    parameters = value.get("parameters", 0)
    if (rows or value.get("zeros")) and not (_is_number(parameters) and parameters > 0):
        yield "parameters is not a number above 0"
    for part in ("gate", "all") if value.get("geometry") else ():
        means = value["geometry"].get(part) if isinstance(value["geometry"], dict) else None
        if not isinstance(means, dict) or not set(_MEANS) <= means.keys():
            yield f"geometry has no {part} with {', '.join(_MEANS)}"
    for level in value.get("levels") or []:
        if not (isinstance(level, dict) and _is_number(level.get("eta")) and level["eta"] > 0):
            yield "levels has an entry without eta above 0"
        elif level.get("score") and not _is_score(level["score"], "exact", "lenient"):
            yield "levels has an entry without a score"
    for suite in value.get("suites") or []:
        if not isinstance(suite, dict) or "suite" not in suite:
            yield "suites has an entry without a name"
        elif "scores" in suite and not _has_accuracy(suite["scores"]):
            yield "suites has an entry whose scores lack an accuracy"


def _named_now(value: Mapping[str, Any]) -> Result:
    """A result with the closed gates of steps by that name; earlier builds called them zeros."""
    found = dict(value)
    if isinstance(logs := value.get("logs"), dict):
        found["logs"] = closed_named(logs)
    if isinstance(rows := value.get("track"), list):
        found["track"] = [closed_named(row) if isinstance(row, dict) else row for row in rows]
    return found


def closed_named(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a step with its closed gates by that name."""
    return {CLOSED_GATES if name == "zeros" else name: value for name, value in entry.items()}


def _is_score(value: Any, *readings: str) -> bool:
    """True for a score of one answer at least, with the numbers of these readings."""
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(name)) for name in ("total", *readings))
        and value["total"] > 0
    )


def _has_accuracy(scores: Any) -> bool:
    tuned = scores.get("tuned") if isinstance(scores, dict) else None
    return isinstance(tuned, dict) and _is_number(tuned.get("accuracy"))


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_other(path: Path) -> bool:
    """True for whole JSON of another kind, such as a recipe's, which may lie in the folder."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return not isinstance(value, dict) or not {"method", "model", "dataset"} & value.keys()


def _without_checksum(value: Mapping[str, Any]) -> Result:
    return {name: one for name, one in value.items() if name != "checksum"}


def _checksum(value: Mapping[str, Any]) -> str:
    text = json.dumps(_without_checksum(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
