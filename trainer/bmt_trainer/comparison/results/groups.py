"""Results that may be counted together: of one model, method and settings, on known data.

Builds before 0.1.0 kept no digests of data. Their results differ by names and settings, and those
that are equal in both are neither averaged nor paired.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

from bmt_trainer.comparison.plan import CONFIGS
from bmt_trainer.masking.targets import GATE_PROJECTIONS

Result = Mapping[str, Any]

# Settings that decide a base's answers and their grades; older results have no others to compare.
_OF_ANSWERS = (
    *("max_new_tokens", "eval_batch_size", "chat_template", "chat_template_kwargs", "system"),
    *("reward", "grader", "thoughts", "precision"),
)
# Settings of which examples are held out.
_OF_SPLIT = ("heldout", "heldout_share", "seed")
# What decides a model's arithmetic and its prompts besides the weights.
_OF_BASE = ("base's configuration", "tokenizer", "chat template")


def seed(result: Result) -> int:
    """The seed of the run."""
    return int(result.get("settings", {}).get("seed", 0))


def base(result: Result) -> Hashable:
    """The model: its name, weights, configuration and tokenizer."""
    contents = result.get("contents", {})
    parts = (contents.get(name) for name in _OF_BASE)
    return (result["model"], result.get("fingerprint"), *parts)


def row(result: Result) -> Hashable:
    """All that the results of one row share: not data, seed and answers."""
    own = {k: v for k, v in settings(result).items() if k != "seed"}
    changes = json.dumps(result.get("changes", {}), sort_keys=True)
    return (base(result), result["trainer"], result["method"], changes, reading(result), _text(own))


def data(result: Result) -> Hashable:
    """The data set, whatever the seed: its name, and its content if that is known."""
    known = result.get("key", {}).get("dataset"), str(result.get("key", {}).get("sources"))
    return (result["dataset"], *(known if "key" in result else ()))


def examples(result: Result) -> Hashable:
    """The held-out examples: their digest, or the names and settings that they came from."""
    digest = result.get("contents", {}).get("held-out data")
    if digest is not None:
        return digest
    return (result["dataset"], _text({n: settings(result).get(n) for n in _OF_SPLIT}))


def reading(result: Result) -> str:
    """The reading of the grader that counts."""
    return str(result.get("reading", "exact"))


def settings(result: Result) -> dict[str, Any]:
    """Settings of the run other than the defaults; results of older builds lack some."""
    defaults = _defaults(result["trainer"])
    found = {
        name: value
        for name, value in result.get("settings", {}).items()
        if name not in defaults or defaults[name] != value
    }
    if result["method"] in ("base", "wanda"):
        found.pop("learning_rate", None)  # the trainer's, which trains nothing here
    return found


@cache
def _defaults(trainer: str) -> Mapping[str, Any]:
    kind = CONFIGS.get(trainer)
    made = {f.name: f.default for f in dataclasses.fields(kind)} if kind else {}
    return {**made, "targets": GATE_PROJECTIONS}


def base_of(result: Result, bases: Sequence[Result]) -> Result | None:
    """The base's result on the same examples, answered and graded in the same way.

    None if there is none, or if there are several that differ.
    """
    if result["method"] == "base":
        return None
    wanted = _answered(result)
    found = [b for b in bases if _answered(b) == wanted and len(b["right"]) == len(result["right"])]
    if len({b["right"] for b in found}) > 1:  # of the same plan, if only one is
        own = _text({k: v for k, v in settings(result).items() if k != "learning_rate"})
        found = [
            b
            for b in found
            if own == _text({k: v for k, v in settings(b).items() if k != "learning_rate"})
        ]
    return found[0] if found and len({b["right"] for b in found}) == 1 else None


def _answered(result: Result) -> Hashable:
    own = settings(result)
    values = {name: own.get(name) for name in _OF_ANSWERS}
    # Rows without a seed of their own are the same examples only with the same seed.
    return (
        *(base(result), result["trainer"], examples(result), reading(result), seed(result)),
        _text(values),
    )


def rows(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each row. Those that differ in nothing are rows of their own."""
    found: dict[Hashable, list[Result]] = {}
    for result in results:
        found.setdefault(row(result), []).append(result)
    groups: list[list[Result]] = []
    for group in found.values():
        cells = [(data(r), seed(r)) for r in group]
        if len(set(cells)) < len(cells):
            groups += [[result] for result in group]
        elif is_grid(group):
            groups.append(group)
        else:  # a mean over seeds needs each seed on each data set
            groups += [[r for r in group if seed(r) == s] for s in sorted(set(map(seed, group)))]
    return groups


def is_grid(group: Sequence[Result]) -> bool:
    """True if each data set has a result of each seed."""
    return len({data(r) for r in group}) * len(set(map(seed, group))) == len(group)


def differing(groups: Sequence[Sequence[Result]]) -> list[str]:
    """Text in which rows of one label differ: settings, digests, else numbers."""
    firsts = [group[0] for group in groups]
    all_settings = [settings(first) for first in firsts]
    names = sorted({name for own in all_settings for name in own} - {"seed"})
    unlike = [n for n in names if len({_text(own.get(n)) for own in all_settings}) > 1]
    defaults = _defaults(firsts[0]["trainer"])
    labels = [
        ", ".join(f"{n} {_shown(own.get(n, defaults.get(n)))}" for n in unlike)
        for own in all_settings
    ]
    parts: list[tuple[str, list[Any]]] = [
        ("weights", [first.get("fingerprint") for first in firsts]),
        *((name, [first.get("contents", {}).get(name) for first in firsts]) for name in _OF_BASE),
        ("reading", [reading(first) for first in firsts]),
    ]
    for name, values in parts:
        if len(set(values)) > 1:
            labels = [
                ", ".join(filter(None, (label, f"{name} {str(value)[:8]}")))
                for label, value in zip(labels, values, strict=True)
            ]
    if len(set(labels)) < len(labels):
        labels = [
            ", ".join(filter(None, (label, f"run {at}"))) for at, label in enumerate(labels, 1)
        ]
    return labels


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
