"""Commands under a launcher of several processes: one result, one line, and none in silence."""

from __future__ import annotations

import os

import pytest
from bmt_trainer.cli import main
from bmt_trainer.distributed import join
from bmt_trainer.errors import ConfigError
from typer.testing import CliRunner


def launched(monkeypatch, rank):
    for name, value in {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)


def failed(monkeypatch, capsys, *arguments):
    """(exit code, standard error) of a program that fails."""
    monkeypatch.setattr("sys.argv", ["bmt-train", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    return end.value.code, capsys.readouterr().err


def train(tmp_path, **changes):
    settings = {"model": tmp_path / "gone", "dataset": "task:initials", **changes}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return ["sft", f"--output={tmp_path / 'm.bmt'}", *flags]


@pytest.mark.found
def test_an_error_of_all_processes_is_one_line_of_the_first(monkeypatch, capsys, tmp_path):
    """The second waits for the launcher to end it, which here takes it out of its sleep."""
    launched(monkeypatch, 0)
    code, line = failed(monkeypatch, capsys, *train(tmp_path, steps=0))
    assert code == 2
    assert line.startswith("bmt-train: steps")
    launched(monkeypatch, 1)

    def ended(_seconds):
        raise SystemExit(143)

    monkeypatch.setattr(main.time, "sleep", ended)
    assert failed(monkeypatch, capsys, *train(tmp_path, steps=0)) == (143, "")


@pytest.mark.found
def test_an_error_of_another_process_alone_is_not_lost(monkeypatch, capsys, tmp_path):
    launched(monkeypatch, 1)
    monkeypatch.setattr(main.time, "sleep", lambda seconds: None)
    code, line = failed(monkeypatch, capsys, *train(tmp_path, steps=0))
    assert code == 2
    assert line.startswith("bmt-train, process 1 of 2: steps")


@pytest.mark.found
def test_a_command_of_one_process_runs_in_the_first_alone(monkeypatch, checkpoint, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    arguments = ["data", str(data), "--model", str(checkpoint)]
    alone = CliRunner().invoke(main.app, arguments)
    assert alone.exit_code == 0
    launched(monkeypatch, 1)
    second = CliRunner().invoke(main.app, arguments)
    assert (second.exit_code, second.output) == (0, "")
    launched(monkeypatch, 0)
    first = CliRunner().invoke(main.app, arguments)
    assert (first.exit_code, first.stdout) == (0, alone.stdout)
    assert "in the first of 2 processes" in first.stderr
    # The libraries see a single process.
    assert not {"WORLD_SIZE", "RANK", "LOCAL_RANK"} & os.environ.keys()


@pytest.mark.found
def test_a_launch_that_starts_one_process_says_so(monkeypatch):
    lines = []
    join("cpu", say=lines.append)
    assert lines == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    join("cpu", say=lines.append)
    [line] = lines
    assert "WORLD_SIZE" in line
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError):
        join("cpu", say=lines.append)
    assert lines == [line]
