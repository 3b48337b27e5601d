"""The line of each step in a run's folder."""

from __future__ import annotations

import json
from types import SimpleNamespace

from bmt_trainer.methods.guards.step_log import FILE, StepLog


def log(callback, step, **logs):
    callback.on_log(None, SimpleNamespace(global_step=step, max_steps=9), None, logs=logs)


def test_figures_of_steps_and_nothing_else(tmp_path):
    callback = StepLog(tmp_path)
    log(callback, 1, loss=2.5, learning_rate=1e-3, note="x", grad_norm=float("nan"))
    log(callback, 1, train_runtime=3.0)  # the run's sum
    log(StepLog(tmp_path), 2, loss=2)  # resumed
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert lines == [
        {"step": 1, "steps": 9, "loss": 2.5, "learning_rate": 0.001},
        {"step": 2, "steps": 9, "loss": 2.0},
    ]


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path):
    log(StepLog(tmp_path / "none"), 1, loss=1.0)
