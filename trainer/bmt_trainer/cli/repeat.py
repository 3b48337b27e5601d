"""The evaluation that a run made of its own mask, read from the mask's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bmt_core

from bmt_trainer.errors import ConfigError

# Methods whose runs score answers.
_ANSWERED = ("sft", "grpo", "sdft")
# Settings of the run by the option of `bmt-train eval`.
_OPTIONS = {
    **{"dataset": "dataset", "heldout": "heldout", "heldout_share": "heldout_share"},
    **{"heldout_dataset": "heldout_dataset", "system": "system", "seed": "seed"},
    **{"max_new_tokens": "max_new_tokens", "batch_size": "eval_batch_size"},
    **{"chat_template": "chat_template", "chat_template_kwargs": "chat_template_kwargs"},
    **{"thoughts": "thoughts", "reading": "reading"},
}


@dataclass(frozen=True)
class Repeated:
    """Options of `bmt-train eval` by name, and what the run recorded of its scores.

    evaluation: engine, batch size, dtype and the digest of the held-out examples; score: of the
    mask; both are empty for a mask of an older build, or without held-out examples.
    """

    options: Mapping[str, Any]
    precision: str = "auto"
    overlong: int = 0
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    score: Mapping[str, Any] = field(default_factory=dict)


def of_mask(path: Path) -> Repeated:
    """The evaluation that a mask's metadata describe. Raises ConfigError if they do not."""
    try:
        metadata = bmt_core.load(path).metadata
    except (OSError, bmt_core.BmtError) as error:
        raise ConfigError(f"like: {path} is no mask: {error}") from None
    config = metadata.get("config")
    if not isinstance(config, Mapping) or "dataset" not in config:
        raise ConfigError(
            f"like: {path} does not name the settings of its training in its metadata, so that "
            "its evaluation cannot be repeated; leave --like out and give the options of eval"
        )
    if (method := metadata.get("method", "sft")) not in _ANSWERED:
        raise ConfigError(
            f"like: {path} is of {method}, which scores rows of its data, and eval scores answers"
        )
    if config.get("environment") or config.get("tools"):
        raise ConfigError(
            f"like: {path} was scored over several turns with calls, and eval scores one answer"
        )
    given = {option: config.get(name) for option, name in _OPTIONS.items()}
    options = {option: value for option, value in given.items() if value is not None}
    if not options.get("heldout") and not options.get("heldout_share"):
        raise ConfigError(
            f"like: {path} held nothing out; leave --like out, and give --mask {path}, --dataset "
            "and --heldout"
        )
    if grader := config.get("reward") or config.get("grader"):
        options["grader"] = grader
    scores = metadata.get("scores")
    score = scores.get("mask") if isinstance(scores, Mapping) else None
    evaluation = metadata.get("evaluation")
    return Repeated(
        options,
        str(config.get("precision", "auto")),
        int(config.get("overlong_penalty") or 0),
        evaluation if isinstance(evaluation, Mapping) else {},
        score if isinstance(score, Mapping) else {},
    )


def compared(like: Repeated, exact: int, total: int, engine: str, batch_size: int) -> str:
    """A line on the run's own score and this one's."""
    if "exact" not in like.score:
        return "the mask's metadata have no score to compare with"
    before = f"{like.score['exact']} of {like.score.get('total')}"
    line = f"the run scored {before}, here {exact} of {total}"
    if exact == like.score["exact"]:
        return line
    ran = f"{like.evaluation.get('engine', 'transformers')}, batches of "
    ran += str(like.evaluation.get("batch_size", like.options.get("batch_size")))
    return (
        f"{line}; there {ran}, here {engine}, batches of {batch_size}: both move an answer in 100"
    )
