"""Signals: a checkpoint of that moment, the exit code, and the same mask after --resume."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys

import pytest
from bmt_trainer.cli import train as cli
from bmt_trainer.methods import grpo, sdft, sft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig, SftConfig
from bmt_trainer.methods.guards.interruption import Interrupted, Interruption, current

METHODS = {
    "sft": (cli.sft, sft, SftConfig, {"batch_size": 2}),
    "grpo": (cli.grpo, grpo, GrpoConfig, {"completions": 4}),
    "sdft": (cli.sdft, sdft, SdftConfig, {}),
}
ON_POLICY = {"prompts_per_step": 2, "micro_batch": 2, "validation": 2, "validate_every": 2}


def settings(method, checkpoint, output, **changes):
    _, _, kind, own = METHODS[method]
    return kind(
        **{
            "model": str(checkpoint),
            "dataset": "task:initials",
            "output": output,
            "heldout": 2,
            "steps": 6,
            "learning_rate": 0.01,
            "calibration_prompts": 4,
            "max_new_tokens": 4,
            "checkpoint_every": 100,
            "device": "cpu",
            **own,
            **({} if method == "sft" else ON_POLICY),
            **changes,
        }
    )


def send_at(monkeypatch, target, name, signum, due):
    """Send this process a signal when `target.name` is entered and `due(self)`, once."""
    real, sent = getattr(target, name), []

    def sending(self, *args, **kwargs):
        if not sent and due(self):
            sent.append(True)
            signal.raise_signal(signum)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(target, name, sending)


TRAINERS = {
    "sft": lambda: sft.MaskedSFTTrainer,
    "grpo": lambda: grpo.MaskedGRPOTrainer,
    "sdft": lambda: sdft.MaskedSDFTTrainer,
}


@pytest.mark.found
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("place", "step"),
    [
        # In the loss of step 4, which is left: the checkpoint is of step 3.
        ("compute_loss", 3),
        # In step 4's optimizer, which is finished: its checkpoint.
        ("_check", 4),
    ],
)
def test_a_signal_leaves_a_checkpoint_of_that_moment(
    checkpoint, tmp_path, monkeypatch, capsys, method, place, step
):
    command, module, *_ = METHODS[method]
    handler = signal.getsignal(signal.SIGTERM)
    config = settings(method, checkpoint, tmp_path / "w.bmt")
    whole = module.train(config)
    config = dataclasses.replace(config, output=tmp_path / "m.bmt")
    with monkeypatch.context() as patch:
        trainer = TRAINERS[method]()
        send_at(patch, trainer, place, signal.SIGTERM, lambda t: t.state.global_step == 3)
        with pytest.raises(SystemExit) as ended:
            command(config)
    assert ended.value.code == 143
    assert [p.name for p in (tmp_path / "m.bmt.run").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    shown = capsys.readouterr().err
    assert f"a checkpoint of step {step} is written" in shown
    assert "--resume" in shown
    assert signal.getsignal(signal.SIGTERM) == handler
    resumed = module.train(dataclasses.replace(config, resume=True))
    assert resumed == whole
    names = [f"{n}.bmt.history.json" for n in ("w", "m")]
    one, two = (json.loads((tmp_path / name).read_text()) for name in names)
    assert [s["loss"] for s in one["steps"]] == [s["loss"] for s in two["steps"]]
    assert one.get("validation") == two.get("validation")


@pytest.mark.parametrize("method", ["grpo", "sdft"])
@pytest.mark.parametrize("place", ["rollouts", "validation"])
def test_rollouts_and_validations_are_left_at_once(
    checkpoint, tmp_path, monkeypatch, method, place
):
    command, module, *_ = METHODS[method]
    config = settings(method, checkpoint, tmp_path / "w.bmt")
    whole = module.train(config)
    config = dataclasses.replace(config, output=tmp_path / "m.bmt")
    with monkeypatch.context() as patch:
        if place == "rollouts":
            due = lambda t: t.state.global_step == 3  # noqa: E731
            send_at(patch, TRAINERS[method](), "sampled", signal.SIGINT, due)
        else:
            calls = []

            def second(_):
                calls.append(True)
                return len(calls) == 2

            send_at(patch, module.on_policy.Validation, "_validate", signal.SIGINT, second)
        with pytest.raises(SystemExit) as ended:
            command(config)
    assert ended.value.code == 130
    [kept] = (tmp_path / "m.bmt.run").glob("checkpoint-*")
    assert kept.name == ("checkpoint-3" if place == "rollouts" else "checkpoint-4")
    resumed = module.train(dataclasses.replace(config, resume=True))
    assert resumed == whole
    names = [f"{n}.bmt.history.json" for n in ("w", "m")]
    one, two = (json.loads((tmp_path / name).read_text()) for name in names)
    assert one["validation"] == two["validation"]


def test_without_checkpoints_none_is_written(checkpoint, tmp_path, monkeypatch, capsys):
    config = settings("sft", checkpoint, tmp_path / "m.bmt", checkpoint_every=0)
    trainer = sft.MaskedSFTTrainer
    send_at(monkeypatch, trainer, "compute_loss", signal.SIGTERM, lambda t: t.state.global_step)
    with pytest.raises(SystemExit):
        cli.sft(config)
    assert not list((tmp_path / "m.bmt.run").glob("checkpoint-*"))
    assert "--resume" not in capsys.readouterr().err


def test_a_signal_waits_while_it_is_deferred():
    with Interruption().handled() as interruption:
        assert current() is interruption
        interruption.defer()
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Interrupted) as raised:
            interruption.allow()
    assert raised.value.exit_code == 128 + signal.SIGUSR1
    assert current() is not interruption


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import signal\n"
        "from bmt_trainer.methods.guards.interruption import Interruption\n"
        "with Interruption().handled() as interruption:\n"
        "    interruption.defer()\n"
        "    for _ in range(2):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (143, "")
    assert "again to end at once" in done.stderr


def test_an_ignored_signal_stays_ignored():
    """As SIGINT is in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption().handled():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
