"""GRPO runs of recipes: gain in accuracy, size of lean masks, cost of mask uploads to a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bmt_core import Mask

from benchmarks.harness.environment import WORK, demo_model
from benchmarks.harness.stats import median
from benchmarks.processes.servers import masks_server
from reproduce.experiments.record import Figure, gain, keep, percent, read_as
from reproduce.experiments.runs import Ran, report, run_recipe


def arithmetic() -> None:
    """Sums of numbers up to 30, with rollouts in this process."""
    _in_process("", "grpo-arithmetic")


def without_tail() -> None:
    """The same sums from gates without initial deletions: Eq. 9's noise is clipped below 3 σ."""
    _in_process("_no_tail", "grpo-arithmetic", init="no-tail", output="grpo-no-tail.bmt")


def harder() -> None:
    """Sums of numbers up to 99; the base solves a tenth of them."""
    _in_process("_hard", "grpo-arithmetic-hard")


def arithmetic_on_a_server() -> None:
    """The same sums with rollouts on a running bmt-server."""
    command = "make reproduce NAME=grpo-server"
    # As many sequences as a step has completions.
    flags = ("--max-num-seqs", "64", "--max-model-len", "512")
    with masks_server(demo_model(), WORK / "paper" / "server", *flags) as server:
        os.environ["BMT_API_KEY"] = server.key
        ran = run_recipe("grpo-arithmetic", server=server.url, output="grpo-server.bmt")
    _gained("grpo_server_gain_points", ran, command)
    # The first upload of a run is the whole mask.
    steps = ran.history["steps"][1:]
    size = sum(f.stat().st_size for f in Path(demo_model()).glob("*.safetensors"))
    shares = {
        "push_bytes_over_model": median([s["push_bytes"] for s in steps]) / size,
        "push_time_over_step": median([s["push_seconds"] / s["step_time"] for s in steps]),
    }
    keep(
        [
            Figure(id=name, value=value, n=len(steps), command=command)
            for name, value in shares.items()
        ]
    )
    flips, sent = (median([s[name] for s in steps]) for name in ("flips", "push_bytes"))
    milliseconds = 1000 * median([s["push_seconds"] for s in steps])
    print(f"median upload: {flips:.0f} flips, {sent:,.0f} bytes, {milliseconds:.0f} ms")
    for name, value in shares.items():
        print(f"{name} {value:.4%}")


def gsm8k() -> None:
    """GSM8K with the paper's recipe, scaled; PAPER_DATA/gsm8k has train.jsonl and test.jsonl."""
    command = "make reproduce NAME=grpo-gsm8k PAPER_DATA=FOLDER"
    folder = Path(os.environ.get("PAPER_DATA", "data")) / "gsm8k"
    ran = run_recipe(
        "grpo-gsm8k",
        dataset=f"gsm8k:{folder / 'train.jsonl'}",
        heldout_dataset=f"gsm8k:{folder / 'test.jsonl'}",
    )
    figures = []
    for reading in ("strict", "flexible"):
        for name, when in (("base", "before"), ("mask", "after")):
            score = read_as(ran.scores[name], "lenient" if reading == "flexible" else reading)
            share, (low, high), total = (score[k] for k in ("accuracy", "interval95", "total"))
            figures.append(percent(f"gsm8k_{reading}_{when}", share, (low, high), total, command))
            print(f"{figures[-1].id:24} {figures[-1].value:5.1f} % [{low:.1%}, {high:.1%}]")
    keep(figures)
    report(ran, "_gsm8k", command)


def _in_process(suffix: str, recipe: str, **changes: Any) -> None:
    """Run a recipe; suffix: of the figures' ids and of the entry's name; changes: of settings."""
    command = "make reproduce NAME=grpo" + suffix.replace("_", "-")
    ran = run_recipe(recipe, **changes)
    _gained(f"grpo{suffix}_gain_points", ran, command)
    report(ran, suffix, command)


def _gained(figure_id: str, ran: Ran, command: str) -> None:
    points, interval = gain(ran.read("base"), ran.read("mask"))
    figure = Figure(
        id=figure_id,
        value=points,
        interval=interval,
        n=ran.scores["base"]["total"],
        command=command,
    )
    keep([figure])
    mask: Mask = ran.mask
    print(f"{points:+.1f} points, {mask.zeros:,} zeros, {ran.seconds / 60:.1f} minutes")
