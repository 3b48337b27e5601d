"""Sampled completions of GRPO and SDFT in a run's trackers."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from xml.etree.ElementTree import fromstring

import pytest
from bmt_trainer.methods import grpo, sdft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig
from bmt_trainer.methods.rollouts import samples
from markdown import markdown
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.training.display import quiet

METHODS = {
    "grpo": (grpo.train, GrpoConfig, {"completions": 2}),
    "sdft": (sdft.train, SdftConfig, {"skip_tokens": 0}),
}


@pytest.mark.parametrize("method", METHODS)
def test_each_step_has_a_few_of_its_completions(method, checkpoint, tmp_path):
    train, kind, own = METHODS[method]
    config = kind(
        **{
            "model": str(checkpoint),
            "dataset": "task:initials",
            "output": tmp_path / "m.bmt",
            "heldout": 0,
            "validation": 0,
            "steps": 2,
            "prompts_per_step": 6,
            "micro_batch": 6,
            "max_new_tokens": 3,
            "calibration_prompts": 4,
            "checkpoint_every": 0,
            "device": "cpu",
            "report_to": "tensorboard",
            **own,
        }
    )
    train(config, quiet())
    events = EventAccumulator(str(tmp_path / "m.bmt.tensorboard")).Reload()
    texts = {
        event.step: event.tensor_proto.string_val[0].decode()
        for event in events.Tensors("completions/text_summary")
    }
    assert sorted(texts) == [1, 2]
    of_reward = ["words", "advantage"] if method == "grpo" else []
    for step, text in texts.items():
        header, _, *rows = text.split("\n")
        assert header.strip("| ").split(" | ") == ["step", "prompt", "completion", *of_reward]
        assert len(rows) == samples.PER_STEP
        assert all(row.startswith(f"| {step} | user: Write the first letter") for row in rows)
        assert len({row.split(" | ")[1] for row in rows}) > 1
    assert texts[1] != texts[2]


class Tracker:
    """A stand-in for a tracker's module: what is sent to it."""

    def __init__(self, *, running=True):
        self.run = object() if running else None
        self.sent = []

    def Table(self, dataframe):  # noqa: N802
        return dataframe.to_dict("list")

    def log(self, values, **options):
        self.sent.append((values["completions"], options))

    def active_run(self):
        return self.run

    def log_table(self, data, file):
        self.sent.append((data, {"file": file}))


def trainer(*names, main=True):
    return SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=main),
        state=SimpleNamespace(global_step=7),
        args=SimpleNamespace(report_to=list(names)),
        callback_handler=SimpleNamespace(callbacks=[]),
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("wandb", {"commit": False}), ("trackio", {}), ("mlflow", {"file": "completions.json"})],
)
def test_each_tracker_gets_its_form(name, options, monkeypatch):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, name, tracker)
    table = {"prompt": ["a", "b"], "completion": ["c", "d"]}
    samples.report(trainer(name), table)
    assert tracker.sent == [({"step": [7, 7], **table}, options)]
    # Of other processes, and of a step without samples, nothing.
    samples.report(trainer(name, main=False), table)
    samples.report(trainer(name), {})
    assert len(tracker.sent) == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_without_a_run_gets_nothing(name, monkeypatch):
    tracker = Tracker(running=False)
    monkeypatch.setitem(sys.modules, name, tracker)
    samples.report(trainer(name), {"prompt": ["a"]})
    assert tracker.sent == []


def test_rows_are_spread_and_shown_as_text():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool"}]
    columns = {"prompt": [str(at) for at in range(12)], "words": [math.nan, *[1.0] * 11]}
    made = samples.some({**columns, "completion": [turns] * 12})
    assert made["prompt"] == ["0", "3", "6", "9"]
    assert made["words"] == [None, 1.0, 1.0, 1.0]
    first, second = made["completion"][0].split("\n")
    assert first.startswith("assistant: ")
    assert "'name': 'add'" in first
    assert second == "tool: "
    assert samples.some({"prompt": ["only"]}) == {"prompt": ["only"]}
    assert samples.some({"prompt": []}) == {"prompt": []}


def test_text_of_a_completion_stays_text_in_a_table():
    shown = samples.markdown(
        {"completion": ["a|b\n<script>`x`</script> **b** [l](u)"], "words": [0.5]}
    )
    *_, row = shown.split("\n")
    assert row.count("|") == 3
    assert "<script>" not in row
    assert "<br>" in row
    assert r"\*\*b\*\*" in row
    assert "| 0.5 |" in row


@pytest.mark.found
def test_signs_that_are_escaped_and_names_of_columns_stay_text():
    text = r"\*a\* \_b\_ \<i> \\"
    shown = samples.markdown({"_x_|<i>": [text]})
    read = fromstring(markdown(shown, extensions=["tables"]))
    assert ["".join(cell.itertext()) for cell in read.iter() if cell.tag in ("th", "td")] == [
        "_x_|<i>",
        text,
    ]


@pytest.mark.found
def test_a_reward_of_the_name_of_a_column_replaces_none():
    columns = samples.reward_columns({"completion": [1.0], "step": [2.0], "words": [3.0]})
    assert columns == {"reward completion": [1.0], "reward step": [2.0], "words": [3.0]}
