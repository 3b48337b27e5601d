"""Graders of reinforcement jobs in OpenAI's shapes, a closed list of kinds, each checked by field.

A server checks a job's grader when the job is made, and a worker checks it again: whoever can write
to the registry can name no other code to run.
"""

from __future__ import annotations

import json
import keyword
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bmt_core.errors import GraderError
from bmt_core.fine_tuning.formulas import Formula
from bmt_core.fine_tuning.templates import Template

#: Bytes of a grader as JSON: job records are in the registry.
MAX_GRADER_BYTES = 48 << 10
OPERATIONS = ("eq", "ne", "like", "ilike")
#: Metrics of text_similarity.
METRICS = ("fuzzy_match", "bleu", "gleu", *(f"rouge_{n}" for n in (1, 2, 3, 4, 5)), "rouge_l")
_NO_METRICS = {
    "cosine": "needs a model of embeddings, and this server has none",
    "meteor": "needs the WordNet corpus, which no package carries",
}
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")
_MAX_GRADERS, _MAX_MESSAGES, _MAX_NAME = 16, 16, 64


@dataclass(frozen=True)
class StringCheck:
    """1 if two texts are equal (`eq`), differ (`ne`), or the first has the second in it (`like`).

    `ilike` is `like` without regard to case.
    """

    name: str
    input: Template
    reference: Template
    operation: str


@dataclass(frozen=True)
class TextSimilarity:
    """The likeness of two texts, from 0 to 1."""

    name: str
    input: Template
    reference: Template
    metric: str


@dataclass(frozen=True)
class ScoreModel:
    """A number by a model of the server. messages: role and text; sampling: OpenAI's parameters."""

    name: str
    model: str
    messages: tuple[tuple[str, Template], ...]
    range: tuple[float, float] = (0.0, 1.0)
    sampling: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class PythonCode:
    """The number that a function `grade(sample, item)` returns, in a sandbox."""

    name: str
    source: str


@dataclass(frozen=True)
class Multi:
    """A formula of the scores of other graders."""

    name: str
    graders: Mapping[str, StringCheck | TextSimilarity | ScoreModel | PythonCode]
    formula: Formula


One = StringCheck | TextSimilarity | ScoreModel | PythonCode
Grader = One | Multi


def parse(value: Any, where: str = "grader") -> Grader:
    """The grader of a JSON value. Raises GraderError with the field."""
    try:
        size = len(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _error(where, f"not JSON ({error})") from None
    if size > MAX_GRADER_BYTES:
        raise _error(where, f"{size} bytes, and {MAX_GRADER_BYTES} are allowed")
    fields = _object(value, where)
    if fields.get("type") == "multi":
        return _multi(fields, where)
    return _one(fields, where)


def graders_of(grader: Grader) -> tuple[One, ...]:
    """The graders that are no `multi`."""
    return tuple(grader.graders.values()) if isinstance(grader, Multi) else (grader,)


def templates_of(grader: Grader) -> list[Template]:
    """All templates of a grader."""
    found: list[Template] = []
    for one in graders_of(grader):
        if isinstance(one, StringCheck | TextSimilarity):
            found += [one.input, one.reference]
        elif isinstance(one, ScoreModel):
            found += [template for _, template in one.messages]
    return found


def _multi(fields: Mapping[str, Any], where: str) -> Multi:
    _known(fields, where, ("graders", "calculate_output"))
    given = fields["graders"]
    if isinstance(given, Mapping) and isinstance(given.get("type"), str):
        # One grader, as OpenAI's types have it; the formula reads it by its name.
        given = {str(given.get("name")): given}
    given = _object(given, f"{where}.graders")
    if not 1 <= len(given) <= _MAX_GRADERS:
        raise _error(f"{where}.graders", f"{len(given)} graders; 1 to {_MAX_GRADERS} do")
    graders = {}
    for name, one in given.items():
        place = f"{where}.graders.{str(name)[:_MAX_NAME]}"
        if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
            raise _error(place, "its name must be letters, digits and _, for calculate_output")
        graders[name] = _one(_object(one, place), place)
    formula = Formula.parse(fields["calculate_output"], graders, f"{where}.calculate_output")
    return Multi(_name(fields, where), graders, formula)


def _one(fields: Mapping[str, Any], where: str) -> One:
    kind = fields.get("type")
    if kind == "string_check":
        _known(fields, where, ("input", "reference", "operation"))
        if fields["operation"] not in OPERATIONS:
            raise _none_of(f"{where}.operation", fields["operation"], OPERATIONS)
        return StringCheck(*_compared(fields, where), fields["operation"])
    if kind == "text_similarity":
        _known(fields, where, ("input", "reference", "evaluation_metric"))
        metric, place = fields["evaluation_metric"], f"{where}.evaluation_metric"
        if isinstance(metric, str) and metric in _NO_METRICS:
            raise _error(place, f"{metric} {_NO_METRICS[metric]}; take {', '.join(METRICS)}")
        if metric not in METRICS:
            raise _none_of(place, metric, METRICS)
        return TextSimilarity(*_compared(fields, where), metric)
    if kind == "score_model":
        return _score_model(fields, where)
    if kind == "python":
        _known(fields, where, ("source",), ("image_tag",))
        if fields.get("image_tag") is not None:
            raise _error(
                f"{where}.image_tag", "graders run by the worker's own Python; leave it out"
            )
        if not isinstance(fields["source"], str) or "\0" in fields["source"]:
            raise _error(f"{where}.source", "expected Python as text")
        return PythonCode(_name(fields, where), fields["source"])
    kinds = ("string_check", "text_similarity", "score_model", "python")
    raise _none_of(f"{where}.type", kind, kinds if "." in where else (*kinds, "multi"))


def _score_model(fields: Mapping[str, Any], where: str) -> ScoreModel:
    _known(fields, where, ("input", "model"), ("range", "sampling_params"))
    model = fields["model"]
    if not isinstance(model, str) or not 0 < len(model) <= 1024:
        raise _error(f"{where}.model", "expected the name of a model of this server")
    given, place = fields["input"], f"{where}.input"
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_MESSAGES:
        raise _error(place, f"expected 1 to {_MAX_MESSAGES} messages with role and content")
    messages = []
    for number, message in enumerate(given):
        at = f"{place}[{number}]"
        found = _object(message, at)
        if extra := found.keys() - {"role", "content", "type"}:
            raise _error(f"{at}.{min(extra)[:_MAX_NAME]}", "unknown field")
        if found.get("type") not in (None, "message"):
            raise _none_of(f"{at}.type", found["type"], ("message",))
        if found.get("role") not in _ROLES:
            raise _none_of(f"{at}.role", found.get("role"), _ROLES)
        text = _content(found.get("content"), f"{at}.content")
        messages.append((str(found["role"]), Template.parse(text, f"{at}.content")))
    return ScoreModel(
        *(_name(fields, where), model, tuple(messages)),
        _range(fields.get("range"), f"{where}.range"),
        _sampling(fields.get("sampling_params"), f"{where}.sampling_params"),
    )


def _content(value: Any, where: str) -> str:
    """The text of a message, whose content may be parts of text."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    texts = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") in _TEXTS:
            part = part.get("text")
        if not isinstance(part, str):
            raise _error(where, "expected text, or parts of type input_text and output_text")
        texts.append(part)
    return "".join(texts)


def _range(value: Any, where: str) -> tuple[float, float]:
    if value is None:
        return 0.0, 1.0
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))):
        raise _error(where, "expected two numbers, the least and the most")
    low, high = map(float, value)
    if not low < high or not (abs(low) <= 1e6 and abs(high) <= 1e6):
        raise _error(where, f"{low:g} to {high:g}: the first must be less, both within a million")
    return low, high


def _sampling(value: Any, where: str) -> Mapping[str, float | int]:
    bounds = {
        "max_completions_tokens": (1, 4096, True),
        "seed": (0, 2**31 - 1, True),
        "temperature": (0, 2, False),
        "top_p": (0.01, 1, False),
    }
    found = {}
    for name, given in (_object(value, where) if value is not None else {}).items():
        if given is None:
            continue
        if name not in bounds:
            raise _error(f"{where}.{name[:_MAX_NAME]}", f"unknown; there are {', '.join(bounds)}")
        least, most, whole = bounds[name]
        if not _is_number(given) or (whole and given != int(given)) or not least <= given <= most:
            kind = "a whole number" if whole else "a number"
            raise _error(f"{where}.{name}", f"expected {kind} from {least} to {most}")
        found[name] = int(given) if whole else float(given)
    return found


def _compared(fields: Mapping[str, Any], where: str) -> tuple[str, Template, Template]:
    texts = (Template.parse(fields[name], f"{where}.{name}") for name in ("input", "reference"))
    return _name(fields, where), *texts  # type: ignore[return-value]


def _known(
    fields: Mapping[str, Any], where: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    known = ("type", "name", *needed)
    for name in known:
        if fields.get(name) is None:
            raise _error(f"{where}.{name}", "missing")
    if unknown := sorted(fields.keys() - {*known, *optional}):
        there = ", ".join((*known, *optional))
        raise _error(f"{where}.{unknown[0][:_MAX_NAME]}", f"unknown; there are {there}")


def _name(fields: Mapping[str, Any], where: str) -> str:
    name = fields["name"]
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise _error(f"{where}.name", f"expected 1 to {_MAX_NAME} printable characters")
    return name


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _error(where, f"expected an object, not {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is no float
        return False


def _none_of(where: str, value: Any, known: tuple[str, ...]) -> GraderError:
    return _error(where, f"{str(value)[:60]!r} is none of {', '.join(known)}")


def _error(where: str, why: str) -> GraderError:
    return GraderError(f"{where}: {why}", field=where)
