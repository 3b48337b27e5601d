"""Figures of a run in its trackers."""

from __future__ import annotations

import sys

import pytest
from bmt_trainer.errors import ConfigError
from bmt_trainer.methods import trackers
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.sft import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.training.display import quiet


def settings(checkpoint, output, *, steps=3, **changes):
    return SftConfig(
        model=str(checkpoint),
        dataset="task:initials",
        output=output,
        heldout=2,
        steps=steps,
        learning_rate=0.05,
        calibration_prompts=4,
        max_new_tokens=2,
        checkpoint_every=0,
        device="cpu",
        **changes,
    )


def test_tensorboard_has_each_step_after_the_run(checkpoint, tmp_path):
    mask = train(settings(checkpoint, tmp_path / "m.bmt", report_to="tensorboard"), quiet())
    events = EventAccumulator(str(tmp_path / "m.bmt.tensorboard")).Reload()
    closed = {e.step: e.value for e in events.Scalars("train/closed_gates")}
    assert sorted(closed) == [1, 2, 3]
    assert closed[3] == mask.zeros
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3]
    flips = {e.step: e.value for e in events.Scalars("train/mask_flips")}
    assert sorted(flips) == [2, 3]
    assert all(abs(closed[step] - closed[step - 1]) <= flips[step] for step in flips)
    assert "report_to" not in mask.metadata["config"]


def test_a_run_that_replaces_another_drops_its_figures(checkpoint, tmp_path):
    for steps in (3, 1):
        changes = {"steps": steps, "overwrite": True, "report_to": "tensorboard"}
        train(settings(checkpoint, tmp_path / "m.bmt", **changes), quiet())
    events = EventAccumulator(str(tmp_path / "m.bmt.tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1]


def test_a_tracker_that_is_none_or_missing(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"'comet' is none of trackio"):
        settings(checkpoint, tmp_path / "m.bmt", report_to="tensorboard, comet")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install mlflow"):
        train(settings(checkpoint, tmp_path / "m.bmt", report_to="mlflow"), quiet())
    assert list(tmp_path.iterdir()) == []


class Wandb:
    """A stand-in for the module `wandb`: its runs, as transformers' callback opens them."""

    def __init__(self):
        self.run, self.runs = None, []

    def open(self, name):
        self.run = {"name": name, "open": True}
        self.runs.append(self.run)

    def finish(self):
        self.run["open"], self.run = False, None


@pytest.mark.parametrize("given", [False, True])
def test_a_run_of_wandb_ends_with_its_training(checkpoint, tmp_path, monkeypatch, given):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    if given:
        wandb.open("of the program")
    for name in ("first", "second"):
        config = settings(checkpoint, tmp_path / f"{name}.bmt", report_to="wandb")
        (end,) = trackers.callbacks(config, None)
        if wandb.run is None:
            wandb.open(name)
        end.on_train_end(None, None, None)
    expected = [("of the program", True)] if given else [("first", False), ("second", False)]
    assert [(run["name"], run["open"]) for run in wandb.runs] == expected


def test_trackers_of_a_trainer(checkpoint, tmp_path):
    config = settings(checkpoint, tmp_path / "math.bmt", report_to="wandb,tensorboard,wandb")
    assert trackers.arguments(config) == {"report_to": ["wandb"], "run_name": "math"}
    named = settings(checkpoint, tmp_path / "math.bmt", run_name="first")
    assert trackers.arguments(named) == {"report_to": "none", "run_name": "first"}
