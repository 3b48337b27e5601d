"""Retention of general skills: the paper's six tasks, run by lm-eval if it is installed.

lm-eval downloads its data from the Hub, unless the task files (YAML) in `task_path` name others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: The package, and the setting that names these tasks instead of a data set.
LM_EVAL = "lm-eval"
#: The paper's tasks, each with the lm-eval metric that enters the mean.
TASKS: Mapping[str, str] = {
    "hellaswag": "acc_norm,none",
    "mmlu": "acc,none",
    "truthfulqa_mc2": "acc,none",
    "winogrande": "acc,none",
    "ifeval": "prompt_level_strict_acc,none",
    "humaneval": "pass@1,create_test",
}


@dataclass(frozen=True)
class Retained:
    """Accuracy by task, and the reason for each task that could not be run."""

    accuracy: Mapping[str, float]
    skipped: Mapping[str, str]

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the tasks; None if one of them did not run, or none was named.

        A mean of some of them would be taken for that of all.
        """
        values = list(self.accuracy.values())
        return sum(values) / len(values) if values and not self.skipped else None


def retained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    task_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> Retained:
    """Run each task on `model`. A task that fails is skipped with its reason."""
    # Departure: no mean without HumanEval, which needs a consent that is not given.
    if importlib.util.find_spec("lm_eval") is None:
        reason = "needs the package lm-eval: pip install lm-eval"
        return Retained({}, dict.fromkeys(tasks, reason))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    manager = TaskManager(include_path=str(task_path) if task_path else None)
    accuracy: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for task in tasks:
        try:
            results: Any = lm_eval.simple_evaluate(
                model=wrapped, tasks=[task], limit=limit, task_manager=manager, bootstrap_iters=0
            )
            metrics = results["results"][task]
            key = TASKS.get(task, "acc,none")
            if key not in metrics:
                key = next(k for k, v in metrics.items() if isinstance(v, float))
            accuracy[task] = float(metrics[key])
        except Exception as error:  # raised by a task's own loader: a missing file, no Hub
            skipped[task] = f"{type(error).__name__}: {error}"[:300]
    return Retained(accuracy, skipped)
