"""What a run shows on a terminal and elsewhere."""

import io
from types import SimpleNamespace

from bmt_trainer.console import Display, StepProgress
from rich.console import Console


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
