"""The command line, in a separate process if the process matters."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import bmt_core
import pytest
from bmt_trainer.cli import main, train
from bmt_trainer.errors import ConfigError
from bmt_trainer.methods import sft
from bmt_trainer.methods.config import SftConfig
from bmt_trainer.models import load_model
from typer.testing import CliRunner

from tests.support.training import forked

SMALL = {
    "dataset": "task:initials",
    "heldout": 4,
    "steps": 2,
    "batch_size": 2,
    "calibration_prompts": 4,
    "max_new_tokens": 2,
}


def run(*arguments):
    return forked.run(["-m", "bmt_trainer", *arguments])


@pytest.fixture
def captured(monkeypatch):
    """Settings that `bmt-train sft` passes to its training."""
    got = []

    class Stop(Exception):
        pass

    def fake(config):
        got.append(config)
        raise Stop

    monkeypatch.setattr(sft, "train", fake)
    return got


def test_flags_override_the_file(tmp_path, captured):
    path = tmp_path / "c.yaml"
    path.write_text("model: m\ndataset: d\noutput: o.bmt\nsteps: 7\nlearning_rate: 1e-3\n")
    flags = ["--config", str(path), "--steps", "9", "--precision", "fp32", "--resume"]
    CliRunner().invoke(main.app, ["sft", *flags])
    [config] = captured
    assert (config.steps, config.learning_rate, config.precision) == (9, 1e-3, "fp32")
    assert config.resume
    assert (config.model, config.batch_size) == ("m", 4)


def test_every_setting_has_a_flag(captured):
    text = CliRunner().invoke(main.app, ["sft", "--help"], env={"COLUMNS": "200"}).output
    for name in (field.name for field in dataclasses.fields(SftConfig)):
        assert f"--{name.replace('_', '-')} " in text


def test_an_unknown_key_in_the_file_is_an_error(tmp_path, captured):
    path = tmp_path / "c.yaml"
    path.write_text("model: m\nlerning_rate: 1\n")
    result = CliRunner().invoke(main.app, ["sft", "--config", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert "did you mean learning_rate?" in str(result.exception)
    assert not captured


def test_errors_are_one_line_and_an_exit_code(tmp_path):
    bad = tmp_path / "bad.bmt"
    bad.write_bytes(b"no mask")
    for arguments, code, says in (
        (["sft", "--model", "m"], 2, "dataset, output must be set"),
        (["sft", "--nope"], 2, "nope"),
        (["apply", tmp_path / "no.bmt", "--model", tmp_path, "--output", "o"], 2, "no.bmt"),
        (["apply", bad, "--model", tmp_path, "--output", tmp_path / "o"], 1, ".bmt"),
        (["apply", bad, "--model", tmp_path / "no", "--output", "o"], 1, ".bmt"),
    ):
        done = run(*arguments)
        assert done.returncode == code, done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_an_interrupted_run_prints_how_to_resume(tmp_path, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "train", interrupted)
    config = SftConfig(model="m", dataset="d", output=tmp_path / "m.bmt")
    for checkpoints in (0, 1):
        if checkpoints:
            (tmp_path / "m.bmt.run" / "checkpoint-100").mkdir(parents=True)
        with pytest.raises(KeyboardInterrupt):
            train.sft(config)
        assert ("--resume" in capsys.readouterr().err) == bool(checkpoints)


def test_version():
    assert CliRunner().invoke(main.app, ["--version"]).output.startswith("bmt-train ")


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom bmt_trainer.cli import main as cli\n"
        "from typer.testing import CliRunner\n"
        "print(CliRunner().invoke(cli.app, ['sft', '--help']).exit_code)\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.split("\n")[:2] == ["0", "[]"]


def test_train_apply_and_eval(checkpoint, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(SMALL))  # JSON is YAML
    mask, out = tmp_path / "m.bmt", tmp_path / "out"
    done = run("sft", "--config", path, "--model", checkpoint, "--output", mask, "--steps", 3)
    assert done.returncode == 0, done.stderr
    assert "exact match" in done.stdout
    assert "train: 3/3" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    made = bmt_core.load(mask)
    assert made.metadata["steps"] == 3

    done = run("apply", mask, "--model", checkpoint, "--output", out)
    assert done.returncode == 0, done.stderr
    weight = load_model(out).model.layers[0].mlp.gate_proj.weight
    assert (weight == 0).sum() == made.tensors[0].zeros

    options = ["--dataset", "task:initials", "--heldout", 4, "--max-new-tokens", 2, "--json"]
    options += ["--engine", "transformers"]
    done = run("eval", "--model", checkpoint, "--mask", mask, "--shots", 1, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"] == 4

    judge = tmp_path / "judge.py"
    judge.write_text("def any_answer(completion, answer):\n    return 1\n")
    done = run("eval", "--model", checkpoint, "--grader", f"{judge}:any_answer", *options)
    assert json.loads(done.stdout)["exact"] == 4, done.stderr
    done = run("eval", "--model", checkpoint, "--grader", "numbr", *options)
    assert done.returncode == 2
    assert "numbr" in done.stderr


@pytest.mark.found
def test_a_terminal_without_the_characters_of_a_name_gets_escapes(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    monkeypatch.setattr(main, "app", lambda: print("ü.bmt"))
    main.main()
    assert written.getvalue() == b"\\xfc.bmt\n"
