"""Rollouts by an engine in process: pushes, draws, resumption and errors, without vLLM."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import bmt_core
import pytest
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import train
from bmt_trainer.methods.rollouts.in_process import engine, of_run

from tests.support.tiny_model import interrupt_after
from tests.support.training.display import quiet
from tests.support.training.rollout_engine import MADE, TransformersEngine

REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"


def settings(checkpoint, output, **changes):
    reward = output.parent / "reward.py"
    reward.write_text(REWARD)
    return GrpoConfig(
        **{
            "model": str(checkpoint),
            "dataset": "task:initials",
            "output": output,
            "heldout": 0,
            "validation": 0,
            "steps": 3,
            "prompts_per_step": 2,
            "completions": 4,
            "micro_batch": 4,
            "learning_rate": 0.01,
            "calibration_prompts": 8,
            "max_new_tokens": 6,
            "checkpoint_every": 1,
            "reward": f"{reward}:odd",
            "device": "cpu",
            "rollouts": "vllm",
            **changes,
        }
    )


@pytest.fixture
def registered(monkeypatch):
    """The entry point names the engine of tests, and vLLM counts as installed."""
    MADE.clear()
    one = SimpleNamespace(load=lambda: TransformersEngine)
    monkeypatch.setattr(engine, "entry_points", lambda **_: [one])
    monkeypatch.setattr(engine, "find_spec", lambda name: object())
    monkeypatch.setattr(TransformersEngine, "fails_at", 0)


def test_each_step_samples_under_the_mask_that_it_pushed(
    checkpoint, tmp_path, registered, monkeypatch
):
    modes = []
    forward = MaskedLinear.forward

    def spying(self, x):
        modes.append((self.state.mode, x.shape[-2]))
        return forward(self, x)

    monkeypatch.setattr(MaskedLinear, "forward", spying)
    mask = train(settings(checkpoint, tmp_path / "m.bmt", select="last"), quiet())
    (made,) = MADE
    assert not made.open
    assert [counts for counts, _ in made.asked] == [[4, 4]] * 3
    seeds = [(seed, seed + 4) for _, drawn in made.asked for seed in drawn]
    ordered = sorted(seeds)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ordered)), "seeds overlap"
    # The model itself computes whole rows alone: it samples nothing.
    assert min(length for _, length in modes) > 1
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())["steps"]
    flips = [bmt_core.symmetric_difference(a, b).zeros for a, b in itertools.pairwise(made.pushes)]
    assert [s["flips"] for s in history] == [made.pushes[0].zeros, *flips]
    assert sum(flips) > 0
    assert all(s["push_seconds"] >= 0 and s["push_bytes"] > 0 for s in history)
    assert mask != made.pushes[-1]  # the last step has trained on


def test_the_engine_gets_what_the_run_needs(checkpoint, tmp_path, registered):
    train(settings(checkpoint, tmp_path / "m.bmt", vllm_memory=0.2, steps=1), quiet())
    options = MADE[0].options
    assert options["memory"] == 0.2
    assert options["sequences"] == 8
    assert options["dtype"] in ("bfloat16", "float32")
    assert 6 < options["tokens"] < 300


def test_a_resumed_run_is_bit_identical(checkpoint, tmp_path, registered, monkeypatch):
    whole = train(settings(checkpoint, tmp_path / "whole.bmt"), quiet())
    cut = settings(checkpoint, tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(cut, quiet())
    assert train(dataclasses.replace(cut, resume=True), quiet()) == whole
    other = settings(checkpoint, tmp_path / "other.bmt", seed=1)
    train(other, quiet())
    drawn = [made.asked[0][1] for made in MADE]
    assert drawn[0] != drawn[-1], "another seed draws other completions"


def test_an_engine_that_fails_leaves_a_checkpoint(checkpoint, tmp_path, registered, monkeypatch):
    whole = train(settings(checkpoint, tmp_path / "whole.bmt"), quiet())
    config = settings(checkpoint, tmp_path / "m.bmt", checkpoint_every=10)
    monkeypatch.setattr(TransformersEngine, "fails_at", 3)
    with pytest.raises(RolloutError, match=r"step 2: RuntimeError: the engine has died;.*--resume"):
        train(config, quiet())
    assert not MADE[-1].open
    monkeypatch.setattr(TransformersEngine, "fails_at", 0)
    assert train(dataclasses.replace(config, resume=True), quiet()) == whole


def test_an_engine_that_does_not_start_is_one_line(checkpoint, tmp_path, registered, monkeypatch):
    monkeypatch.setattr(TransformersEngine, "starts", "Free memory\nis less than wanted")
    with pytest.raises(RolloutError) as caught:
        train(settings(checkpoint, tmp_path / "m.bmt"), quiet())
    text = str(caught.value)
    assert "\n" not in text
    assert "ValueError: Free memory is less than wanted" in text
    assert "--vllm-memory" in text


def test_without_vllm_nothing_is_loaded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    config = settings(checkpoint, tmp_path / "m.bmt")
    with pytest.raises(ConfigError, match=r"rollouts: .*install.*bmt-adapters\[cpu\]"):
        train(config, quiet())
    assert not (tmp_path / "m.bmt.run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server": "http://127.0.0.1:1"}, "rollouts: vllm samples in this process"),
        ({"rollout_batch": 2}, "rollout_batch: 2"),
        ({"vllm_memory": 0.95}, "vllm_memory"),
        ({"targets": r"\.mlp\.up_proj$"}, "targets"),
    ],
)
def test_settings_that_contradict_it_are_refused(checkpoint, tmp_path, registered, changes, said):
    with pytest.raises(ConfigError, match=said):
        train(settings(checkpoint, tmp_path / "m.bmt", **changes), quiet())
    assert not MADE


def test_one_process_alone(registered, monkeypatch):
    config = GrpoConfig(model="m", dataset="task:initials", output="m.bmt", rollouts="vllm")  # type: ignore[arg-type]
    monkeypatch.setattr(of_run, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="rollouts: vllm needs one process, not 2"):
        of_run.check_engine(config, None)  # type: ignore[arg-type]
