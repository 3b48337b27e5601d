"""A fine-tuning job as a worker gets it: checked again here, and turned into settings and data.

A worker runs nothing that a job names: the method is one of a closed list, its hyperparameters are
numbers within bounds, and the data is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config import DpoConfig, SftConfig

#: Methods of jobs, and the commands that train by them.
COMMANDS = {"supervised": "sft", "dpo": "dpo"}
#: Names of files in a job's folder.
DATA, MASK = "training.jsonl", "mask.bmt"
# Defaults for "auto"; the rate is the method's own.
_EPOCHS, _BATCH = 3, 4
_RATES = {"supervised": SftConfig.learning_rate, "dpo": DpoConfig.learning_rate}
# Hyperparameter -> least, most and kind; the first number is excluded of a float.
_BOUNDS: Mapping[str, tuple[float, float, type[int] | type[float]]] = {
    "n_epochs": (1, 100, int),
    "batch_size": (1, 256, int),
    "learning_rate_multiplier": (0, 100, float),
    "beta": (0, 10, float),
}


@dataclass(frozen=True)
class TrainingJob:
    """A leased job. step: the last one whose metrics the server has."""

    id: str
    base: str
    method: str
    hyperparameters: Mapping[str, float | int]
    seed: int
    model: str
    token: str
    step: int = 0

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
                    name: _number(name, value) for name, value in given.items() if value != "auto"
                },
                seed=int(answer["seed"]),
                model=_matching(r"ft-[a-z0-9._-]{1,125}", answer["model"]),
                token=_matching(r"[0-9a-f]{32}", answer["token"]),
                step=int(answer["step"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"job: the server's answer is no job of this version ({error})"
            ) from None
        if "beta" in job.hyperparameters and job.method != "dpo":
            raise ConfigError(f"job: {job.method} has no beta")
        return job

    def settings(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the command that trains it in its folder. more: the worker's own."""
        given = self.hyperparameters
        settings = {
            # Relative: the mask's metadata, which its tenant sees, has no folder of this host.
            "dataset": DATA,
            "output": MASK,
            "epochs": given.get("n_epochs", _EPOCHS),
            "batch_size": given.get("batch_size", _BATCH),
            "learning_rate": _RATES[self.method] * given.get("learning_rate_multiplier", 1.0),
            "seed": self.seed,
            # The rows are all for training, and a row that is too long is an error, not left out.
            "heldout": 0,
            "resume": True,
            **more,
        }
        if self.method == "supervised":
            settings["overlong"] = "error"
        elif "beta" in given:
            settings["beta"] = given["beta"]
        return settings


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
        else:
            row.pop("parallel_tool_calls", None)
        yield json.dumps(row, ensure_ascii=False) + "\n"


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
