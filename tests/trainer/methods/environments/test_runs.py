"""GRPO in an environment on a tiny model: the loop of calls, its losses, rewards and resumption."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import pytest
import torch
from bmt_trainer.console import Display
from bmt_trainer.errors import ConfigError, ResumeError, RolloutError
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods import grpo, trl_mixins
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import MaskedGRPOTrainer, train
from rich.console import Console

from tests.support.tiny_model import byte_tokenizer, interrupt_after
from tests.support.training.display import quiet

ENVIRONMENT = '''
import random

MADE = []


class Secrets:
    def __init__(self):
        MADE.append(self)

    def reset(self, **row):
        self.name, self.asked = row["name"], []
        if row.get("broken"):
            raise KeyError("broken row")
        return f" Ask for {self.name}."

    def lookup(self, name: str) -> str:
        """
        Look up a secret.

        Args:
            name: whose secret.
        """
        self.asked.append(name)
        if name != self.name:
            raise ValueError(f"no name is {name}")
        return str(random.randint(1000, 9999))


class Paid(Secrets):
    def get_reward(self):
        return 0.25 * len(self.asked)


def shout(text: str) -> str:
    """
    Make text loud.

    Args:
        text: the text.
    """
    return text.upper()
'''
REWARD = """
def seen(completions, environments, name, **rest):
    assert len({id(e) for e in environments}) == len(completions)
    assert [e.name for e in environments] == list(name)
    odd = [sum(ord(c) % 2 for c in chat[-1]["content"]) / 40 for chat in completions]
    return [len(e.asked) + value for e, value in zip(environments, odd)]
"""
NAMES = ("Ada", "Ben", "Cy", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Joe", "Kim", "Lou")


def call(name, function="lookup"):
    arguments = json.dumps({"name": name})
    return (
        f'<tool_call>\n{{"name": "{function}", "arguments": {arguments}}}\n</tool_call><|im_end|>'
    )


@pytest.fixture
def calling(monkeypatch):
    """Rollouts whose first turns are calls, but for each third; the model writes the others."""
    tokenizer, real = byte_tokenizer(), trl_mixins.sample
    turns = []

    def sample(model, prompts, **settings):
        made = real(model, prompts, **{**settings, "max_new_tokens": 8})
        for at, prompt in enumerate(prompts):
            text = tokenizer.decode(prompt)
            turns.append(text)
            # The system message shows the forms of calls and answers too.
            asked = text.rpartition("<|im_start|>user")[2]
            if "<tool_response>" not in asked and at % 3:
                name = asked.partition("Ask for ")[2].partition(".")[0]
                wrong = call("Zed") if at % 3 == 2 else call(name)
                made[at] = tokenizer(wrong, add_special_tokens=False)["input_ids"]
        return made

    monkeypatch.setattr(trl_mixins, "sample", sample)
    return turns


def settings(checkpoint, folder, name="m.bmt", **changes):
    rows = [{"prompt": f"Question {n}.", "answer": "x", "name": n} for n in NAMES]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "env.py").write_text(ENVIRONMENT)
    (folder / "reward.py").write_text(REWARD)
    return GrpoConfig(
        **{
            "model": str(checkpoint),
            "dataset": str(folder / "rows.jsonl"),
            "output": folder / name,
            "chat_template": "tools",
            "environment": f"{folder}/env.py:Secrets",
            "reward": f"{folder}/reward.py:seen",
            "heldout": 2,
            "validation": 2,
            "validate_every": 2,
            "steps": 4,
            "prompts_per_step": 2,
            "completions": 3,
            "micro_batch": 3,
            "learning_rate": 0.01,
            "calibration_prompts": 4,
            "max_length": 2000,
            "max_new_tokens": 200,
            "checkpoint_every": 2,
            "device": "cpu",
            **changes,
        }
    )


def test_the_model_calls_and_learns_its_own_tokens_alone(
    checkpoint, tmp_path, calling, monkeypatch
):
    tokenizer, seen, modes = byte_tokenizer(), [], set()
    loss, forward = MaskedGRPOTrainer._compute_loss, MaskedLinear.forward

    def losing(self, model, inputs):
        seen.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
        return loss(self, model, inputs)

    def spying(self, x):
        modes.add((self.state.mode, torch.is_grad_enabled()))
        return forward(self, x)

    monkeypatch.setattr(MaskedGRPOTrainer, "_compute_loss", losing)
    monkeypatch.setattr(MaskedLinear, "forward", spying)
    config, shown = settings(checkpoint, tmp_path), io.StringIO()
    mask = train(config, Display(Console(file=shown, width=500)))
    assert modes == {("off", False), ("hard", False), ("soft", True)}
    answers, failures = 0, 0
    for inputs in seen:
        for ids, real, own in zip(
            inputs["completion_ids"], inputs["completion_mask"], inputs["tool_mask"], strict=True
        ):
            returned = tokenizer.decode(ids[(real == 1) & (own == 0)])
            learnt = tokenizer.decode(ids[(real == 1) & (own == 1)])
            assert "tool_response" not in learnt
            if not returned:
                assert "<tool_call>" not in learnt
                continue
            assert learnt.startswith("<tool_call>")
            start = "\n<|im_start|>tool\n<tool_response>\n"
            assert returned.startswith(start)
            assert returned.endswith("\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
            answers += 1
            failures += "{'error': 'no name is Zed'}" in returned
    assert answers == 4 * 2 * 3 * 2 // 3
    assert failures == answers // 2
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert [s["tools/call_frequency"] for s in history["steps"]] == pytest.approx([2 / 3] * 4)
    assert [s["tools/failure_frequency"] for s in history["steps"]] == pytest.approx([0.5] * 4)
    assert shown.getvalue().count("no name is Zed") == 1
    assert (
        "tools: 0.67 calls a rollout in the last 4 steps, 50.0% of them failed" in shown.getvalue()
    )
    assert not [w for w in mask.metadata.get("warnings", []) if "called anything" in w]
    # Prompts describe the function, and end with what reset adds.
    first = next(text for text in calling if "Question Ada." in text)
    assert '"name": "lookup"' in first
    assert first.endswith("Question Ada. Ask for Ada.<|im_end|>\n<|im_start|>assistant\n")
    # Validation and scores are rewards of greedy rollouts in the same loop.
    assert [v["step"] for v in history["validation"]] == [2, 4]
    scores = mask.metadata["scores"]
    assert {"base", "init", "mask"} <= set(scores)
    assert all(0.4 < score["mean"] < 1.6 for score in (*history["validation"], scores["mask"]))


def test_a_resumed_run_is_bit_identical(checkpoint, tmp_path, calling, monkeypatch):
    config = settings(checkpoint, tmp_path, "whole.bmt")
    whole = train(config, quiet())
    again = train(settings(checkpoint, tmp_path, "again.bmt"), quiet())
    cut = dataclasses.replace(config, output=tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(cut, quiet())
    changed = ENVIRONMENT.replace("Look up", "Look for")
    (tmp_path / "env.py").write_text(changed)
    with pytest.raises(ResumeError, match="environment"):
        train(dataclasses.replace(cut, resume=True), quiet())
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    resumed = train(dataclasses.replace(cut, resume=True), quiet())
    assert resumed == whole == again
    histories = [
        json.loads((tmp_path / f"{name}.bmt.history.json").read_text()) for name in ("whole", "cut")
    ]
    assert histories[0]["validation"] == histories[1]["validation"]
    still = settings(checkpoint, tmp_path, "still.bmt", learning_rate=1e-12)
    assert train(still, quiet()) != whole


def test_each_turn_may_be_sampled_on_a_server(checkpoint, tmp_path, calling, monkeypatch):
    tokenizer, turns = byte_tokenizer(), []

    class Server:
        def turn(self, prompts, trainer, *, first):
            turns.append((len(prompts), first))
            texts = [tokenizer.decode(p).rpartition("<|im_start|>user")[2] for p in prompts]
            names = [t.partition("Ask for ")[2].partition(".")[0] for t in texts]
            said = [call(n) if first and at % 3 else "ok<|im_end|>" for at, n in enumerate(names)]
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
            return ids, [[-1.0] * len(one) for one in ids]

    monkeypatch.setattr(grpo, "server_rollouts", lambda *_: contextlib.nullcontext(Server()))
    train(settings(checkpoint, tmp_path), quiet())
    assert turns == [(6, True), (4, False)] * 4
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert [s["tools/call_frequency"] for s in history["steps"]] == pytest.approx([2 / 3] * 4)
    assert [s["tools/failure_frequency"] for s in history["steps"]] == [0.0] * 4


def test_an_environment_may_own_the_reward(checkpoint, tmp_path, calling):
    config = settings(
        checkpoint,
        tmp_path,
        environment=f"{tmp_path}/env.py:Paid",
        reward="words",
        tools=f"{tmp_path}/env.py:shout",
    )
    mask = train(config, quiet())
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    # Two of three rollouts call once.
    assert [s["reward"] for s in history["steps"]] == pytest.approx([0.25 * 2 / 3] * 4)
    assert [s["rewards/Paid/mean"] for s in history["steps"]] == pytest.approx([0.25 * 2 / 3] * 4)
    assert mask.metadata["scores"]["mask"]["mean"] in (0.0, 0.125, 0.25)
    assert '"name": "shout"' in calling[0]


def test_a_model_that_never_calls_is_warned_of(checkpoint, tmp_path):
    few = {"max_new_tokens": 8, "steps": 2, "validation": 0, "heldout": 0, "reward": "words"}
    mask = train(settings(checkpoint, tmp_path, **few), quiet())
    assert [w for w in mask.metadata["warnings"] if "called anything" in w]


def test_prompts_may_hold_calls_of_different_arguments(checkpoint, tmp_path, calling):
    config = settings(checkpoint, tmp_path, steps=1, validation=0, heldout=0)
    rows = []
    for name, arguments in (("Ada", {"name": "Xi"}), ("Ben", {"id": 3, "deep": {"a": [1]}})):
        function = {"name": "lookup", "arguments": json.dumps(arguments)}
        chat = [
            {"role": "user", "content": "First."},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": f"Question {name}."},
        ]
        rows.append({"prompt": chat, "answer": "x", "name": name})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(config, quiet())
    for name, arguments in (("Ada", '{"name": "Xi"}'), ("Ben", '{"id": 3, "deep": {"a": [1]}}')):
        text = next(t for t in calling if f"Question {name}." in t)
        assert f'"arguments": {arguments}}}\n</tool_call>' in text


def test_rows_may_have_functions_and_options_of_their_own(checkpoint, tmp_path, calling):
    """Without an environment: what a row describes stands in its prompts, as in evaluation."""
    config = settings(
        checkpoint, tmp_path, environment=None, reward="words", steps=1, validation=2, heldout=0
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {name}."}],
            "answer": "x",
            "tools": [{"type": "function", "function": {"name": f"only_{name}"}}],
        }
        for name in NAMES
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(config, quiet())
    sampled = [t for t in calling if t.endswith(".<|im_end|>\n<|im_start|>assistant\n")]
    assert sampled
    for text in sampled:
        name = text.partition("Question ")[2].partition(".")[0]
        assert f'{{"name": "only_{name}"}}' in text


def test_what_cannot_run_is_refused_before_anything_is_generated(checkpoint, tmp_path, calling):
    for changes, message in (
        ({"chat_template": None}, "leaves out calls.*--chat-template tools"),
        ({"environment": f"{tmp_path}/env.py:Nothing"}, "environment .*Nothing"),
        ({"environment": f"{tmp_path}/none.py:E"}, r"environment .*none\.py"),
        ({"tools": f"{tmp_path}/env.py:random"}, "tools .*random"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(settings(checkpoint, tmp_path, **changes), quiet())
    assert not calling
    config = settings(checkpoint, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**row, "broken": True}) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"environment .*Secrets: reset failed .*broken row"):
        train(config, quiet())
    assert not calling
    # A row that fails later.
    rows[0]["broken"] = True
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    with pytest.raises((RolloutError, ConfigError), match=r"Secrets: reset failed .*broken row"):
        train(dataclasses.replace(config, output=tmp_path / "n.bmt"), quiet())
