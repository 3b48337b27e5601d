"""Tasks of lm-eval itself, on data of the tests, against computations by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from bmt_trainer.cli.main import app
from bmt_trainer.evaluation import retention
from bmt_trainer.evaluation.sandbox import programs
from typer.testing import CliRunner

from tests.support.tiny_model import byte_tokenizer, tiny_llama

ROWS = [
    {"query": f"{n} and {n}", "choices": [" are equal", " differ"], "gold": n % 2}
    for n in range(12)
]
PROBLEMS = [
    ("def right(n):\n    return n + 1\n", "assert candidate(1) == 2"),
    ("def wrong(n):\n    return n\n", "assert candidate(1) == 2"),
    ("import socket\ndef reaches(n):\n    socket.socket()\n", "candidate(1)"),
    ("import os\ndef leaves(n):\n    os._exit(0)\n", "candidate(1)"),
]


@pytest.fixture(scope="module")
def task_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of lm-eval with their data; HumanEval as the package has it, on other problems.

    One folder, for lm-eval reads all its tasks with it.
    """
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    data = {"dataset_path": "json", "test_split": "test"}
    task = {
        **data,
        "task": "winogrande",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "winogrande.yaml").write_text(yaml.safe_dump(task))
    rows = [
        {
            "prompt": prompt,
            "entry_point": prompt.split("def ")[1].split("(")[0],
            "test": f"def check(candidate):\n    {check}\n",
        }
        for prompt, check in PROBLEMS
    ]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "include": str(Path(programs.__file__).parent / "humaneval.yaml"),
        "task": "humaneval",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "problems.jsonl")}},
    }
    (folder / "humaneval.yaml").write_text(yaml.safe_dump(task))
    task |= {"task": "unsafe_programs", "unsafe_code": True}
    (folder / "unsafe_programs.yaml").write_text(yaml.safe_dump(task))
    return folder


def silent():
    """A model that ends each answer at once."""
    model, tokenizer = tiny_llama(), byte_tokenizer()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 1.0
    return model, tokenizer


@pytest.mark.found
def test_accuracy_is_that_of_a_computation_by_hand(task_path):
    model, tokenizer = tiny_llama(seed=3), byte_tokenizer()
    right = 0
    for row in ROWS:
        values = []
        for choice in row["choices"]:
            prompt = tokenizer(row["query"], add_special_tokens=False)["input_ids"]
            answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
            logs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
            values.append(sum(float(log[token]) for log, token in zip(logs, answer, strict=True)))
        right += values.index(max(values)) == row["gold"]
    found = retention.retained(model, tokenizer, ("winogrande",), task_path=task_path)
    assert found.skipped == {}
    assert found.accuracy == {"winogrande": pytest.approx(right / len(ROWS))}
    assert found.mean == pytest.approx(right / len(ROWS))


@pytest.mark.found
def test_programs_run_by_consent_alone(task_path, monkeypatch):
    model, tokenizer = silent()
    tasks = ("winogrande", "humaneval")
    ran = []
    real = programs.Sandbox.passes
    monkeypatch.setattr(
        programs.Sandbox, "passes", lambda self, text: ran.append(text) or real(self, text)
    )
    found = retention.retained(model, tokenizer, tasks, task_path=task_path)
    assert found.accuracy.keys() == {"winogrande"}
    assert "run_model_code" in found.skipped["humaneval"]
    assert (found.mean, ran) == (None, [])
    found = retention.retained(model, tokenizer, tasks, task_path=task_path, run_model_code=True)
    assert found.skipped == {}
    assert found.accuracy["humaneval"] == pytest.approx(1 / len(PROBLEMS))
    assert found.mean == pytest.approx(sum(found.accuracy.values()) / 2)
    assert len(ran) == 1 + len(PROBLEMS)  # an empty program is the first


@pytest.mark.found
def test_a_task_that_runs_code_by_itself_is_not_allowed(task_path):
    """The user's consent is to a sandbox: lm-eval's own kind of task has none."""
    names = ("unsafe_programs",)
    found = retention.retained(*silent(), names, task_path=task_path, run_model_code=True)
    assert "marked as unsafe" in found.skipped["unsafe_programs"]


@pytest.mark.found
def test_without_isolation_the_task_is_skipped_in_one_line(task_path, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = retention.retained(*silent(), ("humaneval",), task_path=task_path, run_model_code=True)
    assert "cannot be isolated here" in found.skipped["humaneval"]
    assert "\n" not in found.skipped["humaneval"]


def test_humaneval_is_lm_evals_but_for_the_metric():
    import lm_eval

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    theirs, ours = (
        yaml.load(path.read_text(), Loader)
        for path in (
            Path(lm_eval.__file__).parent / "tasks" / "humaneval" / "humaneval.yaml",
            Path(programs.__file__).parent / "humaneval.yaml",
        )
    )
    assert theirs.pop("unsafe_code") is True
    for task in (theirs, ours):
        [metric] = task.pop("metric_list")
        assert (metric["aggregation"], metric["higher_is_better"]) == ("mean", True)
        task["filter_list"][0]["filter"][0].pop("filter_fn")
    assert ours == theirs


def test_the_command(task_path, checkpoint):
    command = ["retention", "--model", str(checkpoint), "--tasks", "winogrande,humaneval"]
    command += ["--task-path", str(task_path), "--limit", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--run-model-code"])
    summary = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert summary["accuracy"].keys() == {"winogrande", "humaneval"}
    assert summary["mean"] is not None
