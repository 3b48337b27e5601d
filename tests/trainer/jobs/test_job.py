"""A job as a worker reads it: nothing of another form, and rows as the trainer reads them."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from bmt_trainer.data.row_formats import example_of
from bmt_trainer.errors import ConfigError
from bmt_trainer.jobs.job import COMMANDS, DATA, VALIDATION, TrainingJob, rows_of
from bmt_trainer.jobs.settings import TrainingSettings, settings_of
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, SftConfig
from bmt_trainer.settings import build

from tests.support.requests.rows import graded, jsonl, pair, supervised

CONFIGS = {"supervised": SftConfig, "dpo": DpoConfig, "reinforcement": GrpoConfig}
ROWS = {"supervised": supervised(), "dpo": pair(), "reinforcement": graded()}
GRADER = {
    **{"type": "string_check", "name": "s", "operation": "eq"},
    **{"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"},
}


def answer(kind="supervised", **changes):
    hyperparameters = {"n_epochs": "auto", "batch_size": 2, "learning_rate_multiplier": 0.5}
    return {
        **{"id": "ftjob-" + "0" * 24, "base": "ab" * 32, "seed": 3, "model": "ft-0", "step": 0},
        "token": "0" * 32,
        "method": {
            **{"type": kind, "hyperparameters": hyperparameters},
            **({"grader": GRADER} if kind == "reinforcement" else {}),
        },
        **changes,
    }


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("kind", COMMANDS)
def test_settings_are_those_of_the_command(kind, validated, tmp_path):
    job = TrainingJob.parse(answer(kind, validation=validated))
    for name in (DATA, VALIDATION):
        lines = jsonl([ROWS[kind]] * 7).splitlines()
        (tmp_path / name).write_text("".join(rows_of(kind, lines)))
    own = TrainingSettings({"model": "m", "checkpoint_every": 5}, max_new_tokens=9)
    config = build(CONFIGS[kind], settings_of(job, tmp_path, own))
    assert (config.epochs, config.seed) == (3, 3)
    assert config.learning_rate == pytest.approx(0.5 * CONFIGS[kind].learning_rate)
    assert (config.heldout, config.resume, config.select) == (0, True, "last")
    # 12 steps of two rows, of prompts 9: a rest fills none.
    assert config.masks_every == (1 if kind == "reinforcement" else 2)
    assert (config.validation, config.validation_dataset) == (
        (7, VALIDATION) if validated else (0, None)
    )
    if kind == "reinforcement":
        assert (config.prompts_per_step, config.completions, config.max_new_tokens) == (2, 8, 9)
        assert config.accumulation(1) == 1
    else:
        assert config.batch_size == 2


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
        method(compute_multiplier=2),
        {"method": {"type": "reinforcement", "hyperparameters": {}}},
        {"method": {"type": "reinforcement", "hyperparameters": {}, "grader": {"type": "python"}}},
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


@pytest.mark.found
@pytest.mark.parametrize("kind", ["supervised", "reinforcement"])
def test_settings_hold_no_file_in_memory(kind, tmp_path):
    row = supervised() if kind == "supervised" else {**graded(), "more": "x" * 10_000}
    (line,) = rows_of(kind, jsonl([row]).splitlines())
    copies = (8 << 20) // len(line)
    (tmp_path / DATA).write_text(line * copies)
    job = TrainingJob.parse(answer(kind))
    tracemalloc.start()
    settings = settings_of(job, tmp_path, TrainingSettings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    rows_per_step = 2
    assert settings["masks_every"] == -(-(copies // rows_per_step * 3) // 10)


def test_a_file_without_rows_is_the_jobs_fault(tmp_path):
    (tmp_path / DATA).write_text("")
    with pytest.raises(ConfigError, match="no rows"):
        settings_of(TrainingJob.parse(answer()), tmp_path, TrainingSettings())
