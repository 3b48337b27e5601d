"""GRPO runs from recipes: what they gain, how lean their masks are, what pushes cost."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from bmt_trainer.config import build, read_yaml
from bmt_trainer.grpo import GrpoConfig, train

from benchmarks.environment import ROOT, WORK, demo_model
from benchmarks.results import LATEST
from benchmarks.servers import masks_server
from benchmarks.stats import median
from experiments.record import Figure, gain, keep, plot_run, read_as


def arithmetic() -> None:
    """Sums and products, rollouts in process."""
    mask, seconds, _ = _run("grpo-arithmetic")
    _told("grpo_gain_points", mask, seconds, "make paper-grpo")


def arithmetic_on_a_server() -> None:
    """The same with rollouts on a running bmt-server."""
    with masks_server(demo_model(), WORK / "paper" / "server") as server:
        os.environ["BMT_API_KEY"] = server.key
        mask, seconds, history = _run(
            "grpo-arithmetic", server=server.url, output="grpo-server.bmt"
        )
    _told("grpo_server_gain_points", mask, seconds, "make paper-grpo-server")
    # The first push is the whole mask, once a run.
    pushes = [s["push_seconds"] for s in history["steps"][1:]]
    times = [s["step_time"] for s in history["steps"][1:] if "step_time" in s]
    if times:
        share = median(pushes) / median(times)
        figure = Figure(
            id="push_time_over_step",
            value=round(share, 4),
            interval=None,
            n=len(pushes),
            command="make paper-grpo-server",
        )
        keep([figure])
        print(f"push: {median(pushes) * 1000:.0f} ms, {share:.2%} of a step")


def _run(recipe: str, **changes: Any) -> tuple[Any, float, dict[str, Any]]:
    folder = WORK / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    name = changes.pop("output", f"{recipe}.bmt")
    settings = read_yaml(ROOT / "recipes" / f"{recipe}.yaml")
    settings |= {"model": str(demo_model()), "output": folder / name, "resume": True, **changes}
    start = time.monotonic()
    mask = train(build(GrpoConfig, settings))
    seconds = time.monotonic() - start
    history = json.loads((folder / f"{name}.history.json").read_text())
    title = f"{recipe}, {seconds / 60:.1f} minutes"
    reading = mask.metadata["config"]["reading"]
    plot_run(history, mask.numel, reading, title, LATEST / "paper" / f"{Path(name).stem}.png")
    return mask, seconds, history


def _told(figure_id: str, mask: Any, seconds: float, command: str) -> None:
    scores = mask.metadata["scores"]
    reading = {n: read_as(s, mask.metadata["config"]["reading"]) for n, s in scores.items()}
    points, interval = gain(reading["base"], reading["mask"])
    n = scores["base"]["total"]
    found = [
        Figure(
            id=figure_id,
            value=round(points, 2),
            interval=(round(interval[0], 2), round(interval[1], 2)),
            n=n,
            command=command,
        )
    ]
    if "zeros_full" in mask.metadata and figure_id == "grpo_gain_points":
        ratio = mask.zeros / mask.metadata["zeros_full"]
        found.append(
            Figure(
                id="lean_zeros_over_full",
                value=round(ratio, 4),
                interval=None,
                n=n,
                command=command,
            )
        )
    keep(found)
    for name, score in reading.items():
        low, high = score["interval95"]
        print(f"{name:6} {score['accuracy']:6.1%} [{low:.1%}, {high:.1%}]")
    print(f"{points:+.1f} points, {mask.zeros:,} zeros, {seconds / 60:.1f} minutes")


EXPERIMENTS = {"grpo": arithmetic, "grpo-server": arithmetic_on_a_server}
