"""A job as a worker reads it: nothing of another form, and rows as the trainer reads them."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.errors import ConfigError
from bmt_trainer.jobs.job import COMMANDS, TrainingJob, rows_of
from bmt_trainer.methods.config import DpoConfig, SftConfig
from bmt_trainer.settings import build

from tests.support.requests.rows import jsonl, pair, supervised

CONFIGS = {"supervised": SftConfig, "dpo": DpoConfig}


def answer(kind="supervised", **changes):
    hyperparameters = {"n_epochs": "auto", "batch_size": 2, "learning_rate_multiplier": 0.5}
    return {
        **{"id": "ftjob-" + "0" * 24, "base": "ab" * 32, "seed": 3, "model": "ft-0", "step": 0},
        "token": "0" * 32,
        "method": {"type": kind, "hyperparameters": hyperparameters},
        **changes,
    }


@pytest.mark.parametrize("kind", COMMANDS)
def test_settings_are_those_of_the_command(kind):
    job = TrainingJob.parse(answer(kind))
    settings = job.settings({"model": "m", "checkpoint_every": 5})
    config = build(CONFIGS[kind], settings)
    assert (config.epochs, config.batch_size, config.seed) == (3, 2, 3)
    assert config.learning_rate == pytest.approx(0.5 * CONFIGS[kind].learning_rate)
    assert (config.heldout, config.resume) == (0, True)


def method(**hyperparameters):
    return {"method": {"type": "supervised", "hyperparameters": hyperparameters}}


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"type": "shell", "hyperparameters": {}}},
        {"method": {"type": "supervised"}},
        method(n_epochs=1e9),
        method(n_epochs="3"),
        method(n_epochs=True),
        method(batch_size=0),
        method(learning_rate_multiplier=0),
        method(learning_rate_multiplier=float("nan")),
        method(beta=0.1),
        method(push="hf://x/y"),
        {"id": "../../etc"},
        {"model": "prod"},
        {"token": "x"},
        {"base": None},
    ],
)
def test_what_is_no_job_is_not_run(changes):
    with pytest.raises(ConfigError):
        TrainingJob.parse(answer(**changes))


def test_rows_are_read_by_the_trainer():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    row = {**supervised(), "tools": tools, "parallel_tool_calls": True}
    (line,) = rows_of("supervised", jsonl([row]).splitlines())
    example = example_of(json.loads(line), "row 1")
    assert [message["content"] for message in example.prompt] == ["2+3?"]
    assert example.answer == "5"
    with_tools = pair()
    with_tools["input"]["tools"] = tools
    (line,) = rows_of("dpo", jsonl([with_tools]).splitlines())
    example = example_of(json.loads(line), "row 1", "pair")
    assert (example.answer, example.rejected.text) == ("5", "6")
    assert len(list(rows_of("dpo", jsonl([pair()] * 3).splitlines() + [b" "]))) == 3
