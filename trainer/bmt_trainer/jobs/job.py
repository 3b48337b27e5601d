"""A fine-tuning job as a worker gets it: checked again here, and turned into settings and data.

A worker runs nothing that a job names: the method is one of a closed list, its hyperparameters are
numbers within bounds, and the data is JSON. `settings` makes settings of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bmt_core import GraderError
from bmt_core.fine_tuning import graders

from bmt_trainer.errors import ConfigError

#: Methods of jobs, and the commands that train by them.
COMMANDS = {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}
#: Names of files in a job's folder.
DATA, VALIDATION, MASK = "training.jsonl", "validation.jsonl", "mask.bmt"
#: The column of a reinforcement row's other columns, as JSON text: a table of columns would give
#: all rows one set of them, and its own types.
ITEM = "item"
# Hyperparameter -> least, most and kind; the first number is excluded of a float.
_BOUNDS: Mapping[str, tuple[float, float, type[int] | type[float]]] = {
    "n_epochs": (1, 100, int),
    "batch_size": (1, 256, int),
    "learning_rate_multiplier": (0, 100, float),
    "beta": (0, 10, float),
    "compute_multiplier": (0, 8, float),
    "eval_interval": (1, 10_000, int),
    "eval_samples": (1, 1, int),
}
_OF_ALL = {"n_epochs", "batch_size", "learning_rate_multiplier"}
_HYPERPARAMETERS = {
    "supervised": _OF_ALL,
    "dpo": _OF_ALL | {"beta"},
    "reinforcement": _OF_ALL | {"compute_multiplier", "eval_interval", "eval_samples"},
}
_WITHOUT_A_NUMBER = {"auto", "default"}


@dataclass(frozen=True)
class TrainingJob:
    """A leased job. step: the last one whose metrics the server has.

    grader: of `reinforcement`, checked, as JSON; validated: it has a validation file; checkpoints:
    steps whose masks the server has; results: the server has the results file.
    """

    id: str
    base: str
    method: str
    hyperparameters: Mapping[str, float | int]
    seed: int
    model: str
    token: str
    step: int = 0
    grader: Any = None
    validated: bool = False
    checkpoints: tuple[int, ...] = ()
    results: bool = False

    @classmethod
    def parse(cls, answer: Any) -> TrainingJob:
        """The job of a server's answer. Raises ConfigError for one of another form."""
        try:
            method = answer["method"]
            given = method["hyperparameters"]
            job = cls(
                id=_matching(r"ftjob-[0-9a-f]{24}", answer["id"]),
                base=_matching(r"[0-9a-f]{64}", answer["base"]),
                method=_matching("|".join(COMMANDS), method["type"]),
                hyperparameters={
                    name: _number(name, value)
                    for name, value in given.items()
                    if value not in _WITHOUT_A_NUMBER
                },
                seed=int(answer["seed"]),
                model=_matching(r"ft-[a-z0-9._-]{1,125}", answer["model"]),
                token=_matching(r"[0-9a-f]{32}", answer["token"]),
                step=int(answer["step"]),
                grader=_grader(method),
                validated=bool(answer.get("validation")),
                checkpoints=tuple(map(int, answer.get("checkpoints", ()))),
                results=bool(answer.get("results")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, GraderError) as error:
            raise ConfigError(
                f"job: the server's answer is no job of this version ({error})"
            ) from None
        if unknown := sorted(job.hyperparameters.keys() - _HYPERPARAMETERS[job.method]):
            raise ConfigError(f"job: {job.method} has no {unknown[0]}")
        return job


def rows_of(method: str, lines: Iterable[bytes]) -> Iterator[str]:
    """Rows of a file in OpenAI's form, as lines of a data set of this package."""
    for line in lines:
        if not line.strip():
            continue
        row = json.loads(line)
        if method == "dpo":
            given = row["input"]
            row = {
                "prompt": given["messages"],
                "chosen": row["preferred_output"],
                "rejected": row["non_preferred_output"],
                **({"tools": given["tools"]} if given.get("tools") else {}),
            }
        elif method == "reinforcement":
            prompt = row.pop("messages")
            row = {"prompt": prompt, ITEM: json.dumps(row, ensure_ascii=False)}
        else:
            row.pop("parallel_tool_calls", None)
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _grader(method: Mapping[str, Any]) -> Any:
    if method["type"] != "reinforcement":
        return None
    graders.parse(method["grader"])
    return method["grader"]


def _matching(pattern: str, text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(pattern, text):
        raise ValueError(f"{str(text)[:80]!r} has not the form {pattern}")
    return text


def _number(name: str, value: Any) -> float | int:
    least, most, kind = _BOUNDS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind is int and not isinstance(value, int)):
        raise ValueError(f"{name} is {str(value)[:40]!r}, no number of its kind")
    if not (least <= value <= most) or (kind is float and value == least):
        raise ValueError(f"{name} is {value}, and {least} to {most} are allowed")
    return kind(value)
