"""A job as settings of the command that trains it, with the files that they name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmt_core import GraderError
from bmt_core.fine_tuning import graders

from bmt_trainer.errors import ConfigError
from bmt_trainer.jobs.job import DATA, ITEM, MASK, VALIDATION, TrainingJob
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, SftConfig

GRADER = "grader.json"
#: A name and no import: it brings in torch, which a worker has no use for.
REWARD = "bmt_trainer.rewards.openai_graders.reward:JobReward"
# Values of "auto". Checkpoints and validations of a job are this many, evenly apart.
_EPOCHS, _BATCH, _LOOKS = 3, {"supervised": 4, "dpo": 4, "reinforcement": 8}, 10
_RATES = {
    "supervised": SftConfig.learning_rate,
    "dpo": DpoConfig.learning_rate,
    "reinforcement": GrpoConfig.learning_rate,
}
# Rollouts. Of a small base few samples are right at temperature 1, and groups without a right one
# teach nothing; the paper states none (docs/results/log/grpo-sums.md).
_COMPLETIONS, _TEMPERATURE, _FORWARD_PASS = 8, 0.7, 16


@dataclass(frozen=True)
class TrainingSettings:
    """A worker's own part of each job's settings. train: settings of every command.

    max_new_tokens: of an answer in rollouts; server: for `score_model`; run_code: `python` graders
    may run.
    """

    train: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 256
    server: str = ""
    run_code: bool = False


def settings_of(job: TrainingJob, folder: Path, own: TrainingSettings) -> dict[str, Any]:
    """Settings of the job's command, whose rows are in `folder`. Raises ConfigError.

    Files are named relative to it: the mask's metadata, which its tenant sees, has no folder of
    this host.
    """
    given, rows = job.hyperparameters, _count(folder / DATA)
    batch = int(given.get("batch_size", _BATCH[job.method]))
    epochs = given.get("n_epochs", _EPOCHS)
    if job.method == "reinforcement":
        batch = min(batch, rows)
        steps = rows // batch * epochs  # as TRL's sampler, which leaves out a rest
    else:
        steps = math.ceil(rows / batch) * epochs
    every = int(given.get("eval_interval", max(1, math.ceil(steps / _LOOKS))))
    settings = {
        "dataset": DATA,
        "output": MASK,
        "epochs": epochs,
        "learning_rate": _RATES[job.method] * given.get("learning_rate_multiplier", 1.0),
        "seed": job.seed,
        # The rows are all for training.
        "heldout": 0,
        "validation": 0,
        # The job's mask is that of its last step; others are checkpoints.
        "select": "last",
        "masks_every": every,
        "resume": True,
        **own.train,
    }
    if job.validated:
        settings["validation_dataset"] = VALIDATION
        settings["validation"] = _count(folder / VALIDATION)
        settings["validate_every"] = every
    if job.method == "reinforcement":
        settings |= _rollouts(job, folder, own, batch)
        for file in (DATA, *([VALIDATION] if job.validated else [])):
            _check_items(job, folder / file)
    else:
        settings["batch_size"] = batch
    if job.method == "supervised":
        settings["overlong"] = "error"  # a row that is too long is named, and not left out
    elif "beta" in given:
        settings["beta"] = given["beta"]
    return settings


def _rollouts(job: TrainingJob, folder: Path, own: TrainingSettings, batch: int) -> dict[str, Any]:
    """The settings of GRPO; writes the grader's file."""
    given = {"grader": job.grader, "server": own.server, "run_code": own.run_code}
    (folder / GRADER).write_text(json.dumps(given))
    more = job.hyperparameters.get("compute_multiplier", 1.0)
    completions = max(2, round(_COMPLETIONS * more))
    sampled = batch * completions
    return {
        "reward": f"{REWARD}?file={GRADER}",
        "prompts_per_step": batch,
        "completions": completions,
        "temperature": _TEMPERATURE,
        "micro_batch": max(n for n in range(1, _FORWARD_PASS + 1) if sampled % n == 0),
        "max_new_tokens": own.max_new_tokens,
    }


def _check_items(job: TrainingJob, file: Path) -> None:
    """Raise ConfigError for the first row without a column that the grader reads."""
    templates = graders.templates_of(graders.parse(job.grader))
    for number, row in enumerate(_rows(file), 1):
        try:
            item = json.loads(json.loads(row)[ITEM])
            for template in templates:
                template.check(item)
        except GraderError as error:
            name = "validation" if file.name == VALIDATION else "training"
            raise ConfigError(f"{name} file, row {number}: {error}") from None


def _count(file: Path) -> int:
    """The number of rows. Raises ConfigError for a file without any."""
    if not (rows := sum(1 for _ in _rows(file))):
        raise ConfigError(f"{file.name} has no rows; upload it again")
    return rows


def _rows(file: Path) -> Iterator[str]:
    """Rows, one at a time: a worker takes files that are larger than its memory."""
    # Not splitlines, which takes other characters of a row's text for ends of lines.
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if row := line.rstrip("\n"):
                yield row
