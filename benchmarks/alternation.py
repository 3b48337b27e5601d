"""What `auto` does where it can mask in place: traffic that alternates, and traffic that stays.

At the worker's level, with live weights, because vLLM's CPU backend repacks its own: the steps of
a decode are played on a few gates of an 8B model's shape, each step owned by one mask.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import swap, task
from benchmarks.context import Context
from benchmarks.results import Findings, Table
from benchmarks.stats import median

_LAYERS = 4
_TOKENS = 8
# Steps that one of two masks owns before the other takes over.
TRAFFIC = {"alternating, step by step": 1, "turns of 20 steps": 20}
MODES = ("auto", "delta", "scatter")


def auto(context: Context) -> Findings:
    """Steps and switches a second of each mode under each traffic."""
    scale = context.scale
    runs: list[dict[str, Any]] = []
    for process in range(scale.processes):
        context.say(f"process {process + 1} of {scale.processes}")
        job = {"layers": _LAYERS, "steps": scale.alternation_steps}
        runs.append(
            context.step(f"alternation-{process}", task.run, "alternation", job, context.work)
        )
    rows = []
    for traffic in TRAFFIC:
        for mode in MODES:
            of = [r["found"][traffic][mode] for r in runs]
            rows.append(
                (
                    traffic,
                    mode,
                    f"{median([x['steps_per_s'] for x in of]):.1f}",
                    f"{median([x['switches_per_s'] for x in of]):.1f}",
                    f"{of[0]['in_place']} of {scale.alternation_steps}",
                )
            )
    table = Table(
        title="`auto` where weights are live",
        header=("traffic of two masks", "mode", "steps/s", "switches/s", "steps in place"),
        rows=rows,
        note=f"{_TOKENS} tokens a step, {runs[0]['layers']} gates of 14336 x 4096 in bf16; a step "
        f"is the worker's choice, then each gate's product and correction. Kernel: "
        f"{runs[0]['kernel']}.",
    )
    return Findings(tables=[table], samples={"runs": runs})


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One process: {"found": traffic -> mode -> figures}."""
    import torch
    from bmt_server.worker.runtime import MaskRuntime

    gates = swap.live_gates(job["layers"])
    x = torch.randn(_TOKENS, gates[0].base.shape[1]).bfloat16()
    found: dict[str, dict[str, Any]] = {
        traffic: {mode: _play(gates, x, mode, turn, job["steps"]) for mode in MODES}
        for traffic, turn in TRAFFIC.items()
    }
    kernel = MaskRuntime(gates, "auto", 1 << 20).stats.kernel
    return {"found": found, "layers": len(gates), "kernel": kernel}


def _play(gates: list[Any], x: Any, mode: Any, turn: int, steps: int) -> dict[str, float]:
    """Play steps in one mode; masks 1 and 2 take turns of `turn` steps."""
    import numpy as np
    import torch
    from bmt_server.worker.runtime import MaskRuntime

    runtime = MaskRuntime(gates, mode, 1 << 30)
    handles = runtime.handles()
    for adapter in (1, 2):
        runtime.add(adapter, f"m{adapter}@0", swap.layout(len(gates), seed=adapter))

    def step(number: int) -> str:
        owner = 1 + (number // turn) % 2
        kind = runtime.begin_step(np.full(x.shape[0], owner))
        for gate, handle in zip(gates, handles, strict=True):
            y = torch.nn.functional.linear(x, gate.live)
            torch.ops.bmt.masked_delta(y, x, handle)
        return kind

    for number in range(4):
        step(number)
    switches, start = runtime.in_place.switches, time.perf_counter()
    kinds = [step(number) for number in range(steps)]
    seconds = time.perf_counter() - start
    switched = runtime.in_place.switches - switches
    runtime.in_place.switch(None)  # the next mode starts from the base
    return {
        "steps_per_s": steps / seconds,
        "switches_per_s": switched / seconds,
        "in_place": kinds.count("in_place"),
    }
