"""A line of JSON for each step in the run's folder, for whoever watches a run from outside."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bmt_trainer.process import is_main_process

FILE = "steps.jsonl"


class StepLog(TrainerCallback):
    """Appends a step's figures to `FILE`, with `step` and `steps`, the number of all.

    A resumed run writes the steps after its checkpoint again, with the same figures. A disk that is
    full ends the file, and not the run.
    """

    def __init__(self, folder: Path, metric: str = "loss") -> None:
        self._path, self._metric = folder / FILE, metric

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not is_main_process() or not logs or self._metric not in logs:
            return
        figures = {
            name: float(value)
            for name, value in logs.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        line = json.dumps({"step": state.global_step, "steps": state.max_steps, **figures})
        try:
            with self._path.open("a") as file:
                file.write(line + "\n")
        except OSError:
            return
