"""Progress on a terminal and in a log file, and the progress bars of libraries."""

import io
from types import SimpleNamespace

import datasets
from bmt_trainer.console import Display, StepProgress, hide_library_progress
from rich.console import Console
from transformers.utils import logging


def shown(terminal):
    out = io.StringIO()
    return Display(Console(file=out, force_terminal=terminal, width=100)), out


def test_a_log_gets_lines_without_control_codes():
    display, out = shown(False)
    with display.stage("train", 3) as advance:
        for _ in range(3):
            advance(1, "loss 0.5")
    display.say("done " * 40)
    text = out.getvalue()
    assert "train: 3/3" in text
    assert "loss 0.5" in text
    assert not set(text) & {"\r", "\x1b"}
    assert len(text.splitlines()) == 2


def test_a_terminal_gets_a_bar():
    display, out = shown(True)
    with display.stage("train", 3, done=1) as advance:
        advance(2, "loss 0.5")
    assert "\x1b" in out.getvalue()
    assert "3/3" in out.getvalue()


def test_steps_show_the_last_loss():
    got = []
    callback = StepProgress(lambda n, note: got.append((n, note)))
    callback.on_step_end(None, SimpleNamespace(log_history=[]), None)
    callback.on_step_end(None, SimpleNamespace(log_history=[{"loss": 2.0}, {"lr": 1}]), None)
    assert got == [(1, ""), (1, "loss 2.000")]


def test_only_the_main_process_prints(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    Display().say("line")
    assert capsys.readouterr() == ("", "line\n")
    monkeypatch.setenv("RANK", "1")
    display = Display()
    display.say("line")
    with display.stage("train", 1) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_library_bars_are_hidden_only_within_the_block():
    before = logging.is_progress_bar_enabled(), datasets.utils.are_progress_bars_disabled()
    with hide_library_progress():
        assert not logging.is_progress_bar_enabled()
        assert datasets.utils.are_progress_bars_disabled()
    after = logging.is_progress_bar_enabled(), datasets.utils.are_progress_bars_disabled()
    assert after == before
