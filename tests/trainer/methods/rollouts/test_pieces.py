"""Rollouts by transformers in pieces that fit in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from bmt_trainer.errors import ConfigError
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods import grpo, sdft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig
from bmt_trainer.methods.memory import of_run
from bmt_trainer.methods.memory.estimate import estimate, rollout_rows
from bmt_trainer.methods.memory.shapes import Shapes
from bmt_trainer.methods.rollouts.in_process import of_run as pieces
from bmt_trainer.methods.rollouts.local import sample

from tests.support.tiny_model import interrupt_after, tiny_llama
from tests.support.training.display import Lines, quiet

PROMPTS = [[5, 6, 7, 8, 9, 10]] * 3 + [[11, 12]] * 2 + [[5, 6]] * 3
REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"
# Qwen2.5-7B's, in bf16.
LARGE = Shapes(
    weights=7_615_616_512,
    width=2,
    computed=2,
    gates=28 * 3584 * 18944,
    largest=3584 * 18944,
    layers=28,
    hidden=3584,
    inner=18944,
    query=3584,
    keys=512,
    vocabulary=152_064,
)


def settings(checkpoint, output, kind=GrpoConfig, **changes):
    reward = output.parent / "reward.py"
    reward.write_text(REWARD)
    common = {
        "model": str(checkpoint),
        "dataset": "task:initials",
        "output": output,
        "heldout": 0,
        "validation": 0,
        "steps": 3,
        "prompts_per_step": 2,
        "micro_batch": 2,
        "learning_rate": 0.01,
        "calibration_prompts": 8,
        "max_new_tokens": 6,
        "checkpoint_every": 1,
        "device": "cpu",
    }
    own = {"completions": 4, "reward": f"{reward}:odd"} if kind is GrpoConfig else {}
    return kind(**{**common, **own, **changes})


@pytest.fixture
def sampled(monkeypatch):
    """Rows of each forward pass of one token: those of sampling."""
    rows = []
    forward = MaskedLinear.forward

    def spying(self, x):
        if x.dim() == 3 and x.shape[1] == 1:
            rows.append(x.shape[0])
        return forward(self, x)

    monkeypatch.setattr(MaskedLinear, "forward", spying)
    return rows


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 8, 100])
def test_greedy_answers_do_not_depend_on_pieces(at_once):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    common = {"max_new_tokens": 8, "temperature": 0.0, "eos_token_ids": [2], "pad_token_id": 0}
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    whole = sample(model, PROMPTS, **common)
    seen.clear()
    assert sample(model, PROMPTS, at_once=at_once, **common) == whole
    assert max(seen) <= at_once


def test_pieces_have_the_models_probabilities():
    model, ids, draws = tiny_llama(), [5, 6, 7], 4000
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        logits = model(torch.tensor([ids])).logits[0, -1]
    torch.manual_seed(0)
    drawn = sample(
        model,
        [ids] * draws,
        max_new_tokens=1,
        temperature=8.0,
        eos_token_ids=[2],
        pad_token_id=0,
        at_once=300,
    )
    shares = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(logits)) / draws
    assert float((shares - torch.softmax(logits / 8.0, -1)).abs().sum()) < 0.3
    pieces = [drawn[at : at + 300] for at in range(0, 3000, 300)]
    assert len({str(piece) for piece in pieces}) == len(pieces), "each piece draws its own"


@pytest.mark.found
@pytest.mark.parametrize(("module", "kind"), [(grpo, GrpoConfig), (sdft, SdftConfig)])
def test_no_more_completions_at_once_than_the_setting(checkpoint, tmp_path, sampled, module, kind):
    """All of a step were in memory at once: 2,048 rows of a 7B needed 117 GB and more."""
    prompts = {"prompts_per_step": 4 if kind is SdftConfig else 2}
    config = settings(checkpoint, tmp_path / "m.bmt", kind, rollout_batch=3, **prompts)
    shown = Lines()
    module.train(config, shown)
    assert max(sampled) == 3
    rows = 8 if kind is GrpoConfig else 4
    assert f"rollouts: the {rows} completions of a step are sampled 3 at a time" in shown.text


def test_by_default_all_of_a_step_if_they_fit(checkpoint, tmp_path, sampled):
    shown = Lines()
    grpo.train(settings(checkpoint, tmp_path / "m.bmt"), shown)
    assert max(sampled) == 8
    assert "at a time" not in shown.text


def test_a_resumed_run_keeps_its_pieces_on_another_machine(
    checkpoint, tmp_path, sampled, monkeypatch
):
    monkeypatch.setattr(of_run, "memory_of", lambda device: 1)  # one completion at a time
    whole = grpo.train(settings(checkpoint, tmp_path / "whole.bmt"), quiet())
    assert max(sampled) == 1
    cut = settings(checkpoint, tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            grpo.train(cut, quiet())
    monkeypatch.setattr(of_run, "memory_of", lambda device: 1 << 40)
    assert grpo.train(dataclasses.replace(cut, resume=True), quiet()) == whole


@pytest.mark.found
def test_processes_take_pieces_of_the_same_size(checkpoint, tmp_path, sampled, monkeypatch):
    """They sample in step, and the device of another one may be smaller."""
    monkeypatch.setattr(pieces, "of_all_processes", lambda rows: [rows, 3])
    grpo.train(settings(checkpoint, tmp_path / "m.bmt", steps=1), quiet())
    assert max(sampled) == 3


def test_a_baselines_pieces_are_of_what_it_trains():
    """As for all weights, LoRA of a 7B sampled one completion at a time on a GPU of 141 GB."""
    model, config = tiny_llama(), GrpoConfig(model="m", dataset="d", output=Path("m.bmt"))
    weights = sum(p.numel() for p in model.parameters())
    rows = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_run, "memory_of", lambda device: 20 * weights)
        for name, trained in (("full", True), ("adapter", False)):
            model.requires_grad_(trained)
            rows[name] = of_run.rollout_rows(config, model, [], [4], 1)
    assert rows["full"] == 1 < rows["adapter"]


@pytest.mark.parametrize("tokens", [16, 1000, 4096])
@pytest.mark.parametrize("gib", [80, 141, 400])
def test_pieces_fill_the_memory_and_no_more(tokens, gib):
    config = GrpoConfig(
        model="m",
        dataset="task:initials",
        output="m.bmt",  # type: ignore[arg-type]
        prompts_per_step=256,
        completions=8,
        max_new_tokens=tokens,
    )
    memory = gib << 30
    rows = rollout_rows(config, LARGE, longest=400, memory=memory)
    assert 1 <= rows <= 2048

    def taken(count):
        made = estimate(
            dataclasses.replace(config, rollout_batch=count), LARGE, longest=400, memory=memory
        )
        return made.phases["rollouts"].bytes + sum(part.bytes for part in made.kept.values())

    if rows > 1:
        assert taken(rows) <= 0.75 * memory
    if rows < 2048:
        assert taken(rows + 1) > 0.75 * memory
    if gib == 400:
        assert (rows == 2048) == (tokens < 4096)
    # The estimate that a run shows is of these pieces.
    shown = estimate(config, LARGE, longest=400, memory=memory)
    assert shown.phases["rollouts"].arithmetic.startswith(f"{rows:,} x ")


def test_vllm_has_its_share_and_no_pieces():
    config = GrpoConfig(
        model="m",
        dataset="task:initials",
        output="m.bmt",  # type: ignore[arg-type]
        rollouts="vllm",
        vllm_memory=0.25,
    )
    made = estimate(config, LARGE, longest=400, memory=100 << 30)
    assert "rollouts" not in made.phases
    assert made.kept["vLLM"].bytes == 25 << 30


def test_a_piece_has_a_row_at_least(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="rollout_batch: 0 is below 1"):
        settings(checkpoint, tmp_path / "m.bmt", rollout_batch=0)
