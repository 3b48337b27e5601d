"""Retention of general skills: the paper's six tasks, run by lm-eval if it is installed.

lm-eval downloads its data from the Hub, unless the task files (YAML) in `task_path` name others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.sandbox import programs

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
#: The task whose answers are programs.
HUMANEVAL = "humaneval"
_TASKS = Path(programs.__file__).parent


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
    run_model_code: bool = False,
) -> Retained:
    """Run each task on `model`. A task that fails is skipped with its reason.

    run_model_code: run HumanEval, whose answers are programs, in a sandbox.
    """
    # Departure: HumanEval runs in a sandbox, by its user's consent; no mean without it.
    if importlib.util.find_spec("lm_eval") is None:
        reason = "needs the package lm-eval: pip install lm-eval"
        return Retained({}, dict.fromkeys(tasks, reason))
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    # The later folder's task is taken of two with one name.
    manager = _manager((str(_TASKS), *([str(task_path)] if task_path else [])))
    accuracy: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for task in tasks:
        try:
            if task == HUMANEVAL:
                _allow_code(run_model_code)
            # Without lm-eval's own consent to unsafe tasks, which have no sandbox.
            results: Any = lm_eval.simple_evaluate(
                model=wrapped, tasks=[task], limit=limit, task_manager=manager, bootstrap_iters=0
            )
            metrics = results["results"][task]
            key = TASKS.get(task, "acc,none")
            if key not in metrics:
                key = next(k for k, v in metrics.items() if isinstance(v, float))
            accuracy[task] = float(metrics[key])
        except ConfigError as error:
            skipped[task] = str(error)
        except Exception as error:  # raised by a task's own loader: a missing file, no Hub
            skipped[task] = f"{type(error).__name__}: {error}"[:300]
    return Retained(accuracy, skipped)


@lru_cache(1)
def _manager(folders: tuple[str, ...]) -> Any:
    """lm-eval's tasks with those of folders; it reads thousands of files to find them."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders))


def _allow_code(allowed: bool) -> None:
    """Raise ConfigError if a model's programs may not be run, or cannot be isolated."""
    if not allowed:
        raise ConfigError(
            f"{programs.SETTING}: HumanEval runs programs that the model wrote; set it to allow "
            "that, in a sandbox without network"
        )
    programs.check()
