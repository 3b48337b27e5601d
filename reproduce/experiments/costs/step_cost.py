"""Seconds and peak memory of an optimizer step: masks against LoRA and full fine-tuning."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.harness.environment import WORK, demo_model
from benchmarks.harness.stats import estimate, median
from benchmarks.processes.child import Child
from reproduce.experiments.record import keep, ratio

SEQUENCES, TOKENS = 8, 256
PAIRS, STEPS = 3, 3
_TIMEOUT_S = 600
# Two processes at a time, in turns: four would need more than 24 GiB.
COMPARISONS = {
    ("live", "lora1"): ("step_time_live_over_lora1", "memory_live_over_lora1"),
    ("dense", "full"): ("step_time_dense_over_full", "memory_dense_over_full"),
}
COMMAND = "make reproduce NAME=costs-steps"


def compare() -> None:
    """Measure each pair of methods; keep ratios of step time and of peak memory."""
    for methods, ids in COMPARISONS.items():
        _compare_pair(methods, ids)


def _compare_pair(methods: tuple[str, str], ids: tuple[str, str]) -> None:
    ratios: list[list[float]] = []
    seconds: dict[str, list[float]] = {m: [] for m in methods}
    peaks: dict[str, list[float]] = {m: [] for m in methods}
    for pair in range(PAIRS):
        running = {m: _start(m) for m in methods}
        try:
            for child in running.values():
                child.answer(_TIMEOUT_S)
                child.ask({}, _TIMEOUT_S)  # the first step allocates the optimizer's state
            turns = []
            for turn in range(STEPS):
                order = methods if (pair + turn) % 2 else methods[::-1]
                answers = {m: running[m].ask({}, _TIMEOUT_S) for m in order}
                for m in methods:
                    seconds[m].append(answers[m]["seconds"])
                turns.append(answers[methods[0]]["seconds"] / answers[methods[1]]["seconds"])
            ratios.append(turns)
            for m in methods:
                peaks[m].append(answers[m]["peak_bytes"])
        finally:
            for child in running.values():
                child.stop()
    speed = estimate(ratios)
    memory = estimate([[a / b] for a, b in zip(*(peaks[m] for m in methods), strict=True)])
    keep([ratio(i, measured, COMMAND) for i, measured in zip(ids, (speed, memory), strict=True)])
    for m in methods:
        print(f"{m:6} {median(seconds[m]):6.2f} s a step, {median(peaks[m]) / 1e9:5.2f} GB at most")
    print(f"{ids[0]} {speed}\n{ids[1]} {memory}")


def _start(method: str) -> Child:
    job: dict[str, Any] = {
        "method": method,
        "model": str(demo_model()),
        "sequences": SEQUENCES,
        "tokens": TOKENS,
    }
    log = WORK / "paper" / f"step-{method}.log"
    return Child(
        f"training by {method}", "reproduce.experiments.costs.step_child", [json.dumps(job)], log
    )
