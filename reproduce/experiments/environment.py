"""GRPO in an environment of several turns: rewards of held-out prompts before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bmt_core
import torch
from bmt_trainer import models
from bmt_trainer.data import sources
from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.intervals import interval_of_mean
from bmt_trainer.masking.apply import apply
from bmt_trainer.methods.rollouts import environments
from bmt_trainer.methods.rollouts.local import eos_token_ids, sample
from bmt_trainer.methods.trl_setup import prepare_tool_calls
from trl.chat_template_utils import parse_response

from benchmarks.harness.environment import WORK, demo_model
from reproduce.experiments import codes
from reproduce.experiments.record import Figure, keep
from reproduce.experiments.runs import run_recipe

COMMAND = "make reproduce NAME=grpo-environment"
RECIPE = "grpo-environment"
# Sampled rollouts of each held-out prompt, at the temperature of training.
_SAMPLES = 4
_TEMPERATURE, _TOKENS, _TURNS = 0.8, 40, 3


def train() -> None:
    """Codes that a function must be asked for: greedy and sampled rollouts under base and mask."""
    rows = WORK / "paper" / "codes.jsonl"
    codes.write(rows, 0)
    ran = run_recipe(
        RECIPE,
        dataset=str(rows),
        environment=f"{codes.__file__}:Codes",
        reward=f"{codes.__file__}:used",
    )
    figures = []
    for name, when in (("base", "before"), ("init", "start"), ("mask", "after")):
        score = ran.scores[name]
        low, high = score["mean_interval95"]
        print(f"{name:5} {score['mean']:.3f} [{low:.3f}, {high:.3f}] greedy, n = {score['total']}")
        figures.append(_figure(f"greedy_{when}", score["mean"], (low, high), score["total"]))
    heldout = sources.load(
        str(rows), heldout=ran.scores["mask"]["total"], train=1, seed=ran.mask.metadata["seed"]
    ).heldout
    for mask, when in ((None, "before"), (ran.mask, "after")):
        values = sampled(heldout, mask)
        mean, interval = sum(values) / len(values), interval_of_mean(values)
        print(f"{when:6} {mean:.3f} [{interval[0]:.3f}, {interval[1]:.3f}] sampled")
        figures.append(_figure(f"sampled_{when}", mean, interval, len(values)))
    keep(figures)
    print(f"{ran.mask.zeros:,} zeros, {ran.seconds / 60:.1f} minutes")


def sampled(examples: Sequence[Example], mask: bmt_core.Mask | None) -> list[float]:
    """Rewards of sampled rollouts by the base or the mask, in a loop of its own, without TRL's."""
    acting = environments.named(f"{codes.__file__}:Codes", None)
    folder = Path(demo_model())
    tokenizer, model = models.load_tokenizer(folder, "tools"), models.load_model(folder)
    prepare_tool_calls(tokenizer)
    if mask is not None:
        apply(mask, model, base_fingerprint=mask.base.fingerprint)
    chosen = [acting.shown_to(e) for e in examples for _ in range(_SAMPLES)]
    made = [codes.Codes() for _ in chosen]
    for example, one in zip(chosen, made, strict=True):
        one.reset(**example.columns)
    ids = [render(tokenizer, example) for example in chosen]
    chats: list[list[dict[str, Any]]] = [[] for _ in chosen]
    going = list(range(len(chosen)))
    torch.manual_seed(0)
    for _ in range(_TURNS):
        if not going:
            break
        answers = sample(
            model,
            [ids[at] for at in going],
            max_new_tokens=_TOKENS,
            temperature=_TEMPERATURE,
            eos_token_ids=eos_token_ids(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
        more = []
        for at, answer in zip(going, answers, strict=True):
            message = parse_response(tokenizer, answer, prefix=ids[at], tools=[*acting.schemas])
            chats[at].append(message)
            if calls := message.get("tool_calls"):
                chats[at] += [_result(made[at], call["function"]) for call in calls]
                ids[at] = ids[at] + answer + _told(tokenizer, chats[at][-len(calls) :])
                more.append(at)
        going = more
    names = [str(example.columns["code"]) for example in chosen]
    return codes.used(chats, made, names)


def _result(environment: codes.Codes, function: dict[str, Any]) -> dict[str, Any]:
    """The message of a call's result, as TRL makes it."""
    name = function["name"]
    try:
        if name != "lookup":
            raise ValueError(f"Tool {name} not found.")
        content = environment.lookup(**function["arguments"])
    except (TypeError, ValueError) as error:
        content = str({"error": str(error)})
    return {"role": "tool", "name": name, "content": content}


def _told(tokenizer: Any, results: Sequence[dict[str, Any]]) -> list[int]:
    """Tokens between a turn with calls and the next one."""
    call = {"type": "function", "function": {"name": "lookup", "arguments": {}}}
    before = [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    texts = [
        str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt))
        for chat, prompt in ((before, False), ([*before, *results], True))
    ]
    # The answer ends with its end of turn; the newline after it is the template's.
    text = texts[1].removeprefix(texts[0].rstrip("\n"))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _figure(name: str, value: float, interval: tuple[float, float], n: int) -> Figure:
    return Figure(
        id=f"environment_reward_{name}", value=value, interval=interval, n=n, command=COMMAND
    )
