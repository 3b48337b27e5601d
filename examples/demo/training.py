"""The demo's tasks, one YAML file each, and the training of their masks by `bmt-train`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bmt_core
import yaml
from bmt_trainer.data import sources
from bmt_trainer.data.examples import Example
from errors import DemoError
from processes import program, run

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Task:
    """One of the demo's tasks: its settings, its held-out examples, and where its mask goes."""

    name: str
    config: Path
    settings: dict[str, Any]
    examples: list[Example]
    mask: Path

    def scores(self) -> dict[str, Any]:
        """The trainer's own figures, as the mask's file carries them."""
        return bmt_core.inspect(self.mask.read_bytes()).metadata["scores"]


def tasks(folder: Path) -> list[Task]:
    """A task for each YAML file in this folder; masks go to `folder`."""
    return [_task(path, folder) for path in sorted(HERE.glob("*.yaml"))]


def _task(config: Path, folder: Path) -> Task:
    settings = yaml.safe_load(config.read_text())
    # The split that `bmt-train` makes of the same settings.
    split = sources.load(
        settings["dataset"],
        heldout=settings["heldout"],
        train=1,
        seed=settings.get("seed", 0),
        system=settings.get("system"),
    )
    return Task(config.stem, config, settings, split.heldout, folder / f"{config.stem}.bmt")


def train(task: Task, model: str) -> None:
    """Train the task's mask; `bmt-train` shows its own progress. Raises DemoError."""
    # An interrupted demo leaves an unfinished run; this one starts afresh.
    shutil.rmtree(task.mask.with_name(task.mask.name + ".run"), ignore_errors=True)
    command = [program("bmt-train"), "sft", "--config", str(task.config)]
    command += ["--model", model, "--output", str(task.mask), "--overwrite"]
    code = run(command).returncode
    if code:
        raise DemoError(f"training {task.name} failed (exit code {code}); its output is above")
