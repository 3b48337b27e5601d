"""Rollouts by a real vLLM engine in the trainer's process, against transformers'."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.methods import sdft
from bmt_trainer.methods.config import SdftConfig

from tests.support.engines import run_engine
from tests.support.tiny_model import byte_tokenizer, tiny_llama
from tests.support.training.display import quiet

# An engine of its own for each run, in a process of its own.
pytestmark = [pytest.mark.operate, pytest.mark.engine]

REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"
#: Parity's bound of a log-probability, in nats, fp32.
BOUND = 1e-3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny fp32 model with a head size that vLLM's attention takes, sure of its next token.

    At the lowest temperature that vLLM takes, 0.01, its answers are then greedy.
    """
    folder = tmp_path_factory.mktemp("base")
    shape = {"hidden_size": 128, "intermediate_size": 192, "initializer_range": 0.2}
    model = tiny_llama(**shape, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def settings(base, output, **changes):
    return {
        "model": str(base),
        "dataset": "task:initials",
        "output": str(output),
        "heldout": 0,
        "validation": 0,
        "select": "last",
        "steps": 3,
        "prompts_per_step": 4,
        "micro_batch": 4,
        "learning_rate": 0.02,
        "calibration_prompts": 8,
        "max_new_tokens": 6,
        "checkpoint_every": 0,
        "device": "cpu",
        "precision": "fp32",
        "rollouts": "vllm",
        **changes,
    }


def run(method, of_run, folder):
    folder.mkdir()
    of_run = {**of_run, "output": str(folder / "m.bmt")}
    return run_engine("rollouts.py", {"method": method, "settings": of_run}, folder)


def flat(turns, name):
    return torch.tensor([value for t in turns for row in t[name] for value in row])


def test_sampled_rollouts_are_those_of_the_pushed_mask(base, tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text(REWARD)
    of_run = settings(base, "", completions=4, micro_batch=8, reward=f"{reward}:odd")
    made = run("grpo", of_run, tmp_path / "one")
    said = flat(made["turns"], "engine")
    assert len(made["turns"]) == len(made["steps"]) == 3
    assert (said - flat(made["turns"], "trainer")).abs().max() < BOUND
    # The masks change what is sampled, so the bound says which one was.
    assert (said - flat(made["turns"], "base")).abs().max() > 100 * BOUND
    assert len({str(row) for t in made["turns"] for row in t["completions"]}) > 12, "no draws"
    assert [step["flips"] for step in made["steps"]] == made["flips"]
    assert all(flips > 0 for flips in made["flips"])
    again = run("grpo", of_run, tmp_path / "two")
    assert again["digest"] == made["digest"]
    assert again["turns"] == made["turns"]


def test_greedy_rollouts_train_the_mask_of_transformers(base, tmp_path):
    """The same answers give the same losses, and leave the trainer's own draws alone."""
    # Without a warm-up, whose first rate is 0.
    of_run = settings(base, "", temperature=0.01, skip_tokens=0, warmup=0)
    made = run("sdft", of_run, tmp_path / "vllm")
    assert (flat(made["turns"], "engine") - flat(made["turns"], "trainer")).abs().max() < BOUND
    assert all(step["flips"] > 0 for step in made["steps"])
    plain = {**of_run, "output": tmp_path / "plain.bmt", "rollouts": "transformers"}
    assert sdft.train(SdftConfig(**plain), quiet()).digest == made["digest"]
