"""What a model keeps of what it could before: the paper's six tasks, by lm-eval where it is there.

lm-eval downloads its data from the Hub, or reads it from `task_path`, a folder of its YAML files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: The paper's suite, and which of a task's figures its mean is of.
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
    """Accuracy by task; for a task that could not be run, why."""

    accuracy: Mapping[str, float]
    skipped: Mapping[str, str]

    @property
    def mean(self) -> float | None:
        """Over the tasks that ran; None where none did."""
        values = list(self.accuracy.values())
        return sum(values) / len(values) if values else None


def retained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    task_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> Retained:
    """Run each task on `model` as it is. What one task lacks does not stop the others."""
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
            found: Any = lm_eval.simple_evaluate(
                model=wrapped, tasks=[task], limit=limit, task_manager=manager, bootstrap_iters=0
            )
            figures = found["results"][task]
            key = TASKS.get(task, "acc,none")
            if key not in figures:
                key = next(k for k, v in figures.items() if isinstance(v, float))
            accuracy[task] = float(figures[key])
        except Exception as error:  # each task's own loader, from a missing file to a missing Hub
            skipped[task] = f"{type(error).__name__}: {error}"[:300]
    return Retained(accuracy, skipped)
