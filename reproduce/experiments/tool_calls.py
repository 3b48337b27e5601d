"""Tool calls learnt by SFT: held-out rows in the trainer, and through a server's tool parser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bmt_core
from bmt_trainer.data import sources
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.graders import TOOL_CALLS
from bmt_trainer.evaluation.intervals import wilson
from bmt_trainer.evaluation.score import grade
from bmt_trainer.templates import shipped

from benchmarks.harness.environment import WORK, demo_model
from benchmarks.processes.servers import NAME, Server, masks_server, upload
from reproduce.experiments import tool_data
from reproduce.experiments.record import keep, percent
from reproduce.experiments.runs import Ran, run_recipe

RECIPE = "sft-tool-calls"
ROWS, SEED = 700, 0
COMMAND = "make reproduce NAME=sft-tool-calls"
SERVED = "make reproduce NAME=sft-tool-calls-served"
# As many requests at a time as the server runs sequences.
_CONCURRENCY = 32


def train() -> None:
    """Train the mask; the calls of held-out rows by base, mask and an answer of nothing."""
    _mask_file().unlink(missing_ok=True)
    ran = _ran()
    examples = _heldout(ran)
    scores = {name: ran.read(name) for name in ("base", "init", "mask")}
    scores["nothing"] = grade([""] * len(examples), _answered(examples), TOOL_CALLS).to_json()
    figures = []
    for name, score in scores.items():
        share, (low, high), total = (score[k] for k in ("accuracy", "interval95", "total"))
        print(f"{name:8} {share:6.1%} [{low:.1%}, {high:.1%}] of {total} held-out requests")
        figures.append(percent(f"tool_calls_{name}", share, (low, high), total, COMMAND))
    keep(figures)


def serve() -> None:
    """The same rows through /v1/chat/completions with `tools`, answers parsed by vLLM."""
    ran = _ran()
    examples = _heldout(ran)
    flags = ["--chat-template", str(shipped.path_of("tools"))]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with masks_server(demo_model(), WORK / "paper" / "server", *flags) as server:
        upload(server, [_mask_file()], ["calls"])
        figures = []
        for label, model in (("base", NAME), ("mask", "calls")):
            right = sum(_right(server, model, examples))
            low, high = wilson(right, len(examples))
            print(f"{label}: {right} of {len(examples)} [{low:.1%}, {high:.1%}] through the server")
            figure_id = f"tool_calls_served_{label}"
            share = right / len(examples)
            figures.append(percent(figure_id, share, (low, high), len(examples), SERVED))
    keep(figures)
    print(f"in the trainer: {ran.scores['mask']['exact']} of {ran.scores['mask']['total']}")


def _ran() -> Ran:
    """The run of the recipe: trained, or as it was if its mask is there."""
    if (done := _mask_file()).exists():
        return Ran(mask=bmt_core.load(done), seconds=0.0, history={})
    rows = WORK / "paper" / "tool-calls.jsonl"
    tool_data.write(rows, ROWS, SEED)
    return run_recipe(RECIPE, dataset=str(rows))


def _mask_file() -> Path:
    return WORK / "paper" / f"{RECIPE}.bmt"


def _heldout(ran: Ran) -> list[Example]:
    """The examples that the run held out."""
    config = ran.mask.metadata["config"]
    heldout, train = config["heldout"], config["train_examples"]
    split = sources.load(config["dataset"], heldout=heldout, train=train, seed=config["seed"])
    return split.heldout


def _answered(examples: Sequence[Example]) -> list[Example]:
    """The examples with their calls as the answer's text."""
    return [Example(e.prompt, _text(_wanted(e))) for e in examples]


def _wanted(example: Example) -> list[dict[str, Any]]:
    assert example.reply is not None
    return [dict(call["function"]) for call in example.reply["tool_calls"]]


def _text(calls: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(call) for call in calls)


def _right(server: Server, model: str, examples: Sequence[Example]) -> list[bool]:
    """True for each example whose `tool_calls` of the server are those of the row."""
    import httpx2

    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx2.Client(
        base_url=server.url, headers=headers, timeout=300, trust_env=False
    ) as client:

        def one(example: Example) -> bool:
            body = {
                "model": model,
                "messages": [dict(m) for m in example.messages],
                "tools": [dict(tool) for tool in example.tools],
                "max_tokens": 64,
                "temperature": 0,
            }
            answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            called = answer["choices"][0]["message"].get("tool_calls") or []
            given = [
                {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])}
                for c in called
            ]
            return bool(TOOL_CALLS.strict(_text(given), _text(_wanted(example))))

        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            return list(pool.map(one, examples))
