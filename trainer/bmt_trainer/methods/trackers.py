"""Trackers of experiments: a run's figures by the callbacks of transformers.

trackio, Weights & Biases and MLflow take their project, address and key from their own environment
variables (`TRACKIO_PROJECT`, `WANDB_…`, `MLFLOW_…`). TensorBoard's files are next to the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config import TrainConfig
from bmt_trainer.methods.config.trackers import names_of
from bmt_trainer.methods.run_folder import RunFolder
from bmt_trainer.process import is_main_process


def check_installed(report_to: str | None) -> None:
    """Raise ConfigError for a tracker whose package is missing."""
    for name in names_of(report_to):
        if find_spec(name) is None:
            raise ConfigError(f"report_to: {name} is not installed; pip install {name}")


def arguments(config: TrainConfig) -> dict[str, Any]:
    """Settings of a trainer for its trackers but TensorBoard, which has a callback of its own."""
    own = [name for name in names_of(config.report_to) if name != "tensorboard"]
    return {"report_to": own or "none", "run_name": config.run_name or config.output.stem}


def callbacks(config: TrainConfig, run: RunFolder) -> list[TrainerCallback]:
    """Callbacks of TensorBoard and of the end of W&B's run, if they are asked for.

    transformers' own place for TensorBoard's files is the run's folder, which ends with the run.
    Entries of steps that this run takes again are dropped: a resumed run's after its checkpoint,
    and all of an earlier run of the same output.
    """
    names, made = names_of(config.report_to), list[TrainerCallback]()
    if not is_main_process():
        return made
    if "wandb" in names:
        made.append(EndOfRun(import_module("wandb")))
    if "tensorboard" in names:
        from torch.utils.tensorboard import SummaryWriter

        done = run.steps_done()
        purged = done + 1 if done else 0
        made.append(
            TensorBoardCallback(SummaryWriter(tensorboard_folder(config.output), purge_step=purged))
        )
    return made


class EndOfRun(TrainerCallback):
    """Ends the run of Weights & Biases that a training began.

    transformers leaves it open (5.19, integrations/integration_utils.py), and the next training of
    the process, as in a comparison, would report to it. A run that was open before stays so.
    """

    def __init__(self, wandb: Any) -> None:
        self._wandb, self._given = wandb, wandb.run is not None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After transformers' own callback, which comes first in a trainer."""
        if not self._given and self._wandb.run is not None:
            self._wandb.finish()


def tensorboard_folder(output: Path) -> Path:
    """The folder of TensorBoard's files."""
    return output.with_name(f"{output.name}.tensorboard")


def validation_figures(run: RunFolder) -> Mapping[str, float]:
    """The last validation's share of right answers, mean reward or loss; empty before the first."""
    last = (run.notes.get("validation") or [{}])[-1]
    return {f"validation/{n}": last[n] for n in ("accuracy", "mean", "loss") if n in last}
