"""Mode `auto` on weights that can be masked in place: alternating traffic and steady traffic.

At the worker's level, with live weights, because vLLM's CPU backend repacks its own: the steps of
a decode are played on a few gates of an 8B model's shape, each step owned by one mask.
"""

from __future__ import annotations

import time
from typing import Any

from bmt_server.settings import MaskMode

from benchmarks.harness.section import Context
from benchmarks.harness.stats import median
from benchmarks.processes import task
from benchmarks.report.results import Findings, Table
from benchmarks.suites import swap

_LAYERS = 4
_TOKENS = 8
_ROUNDS = 5  # of all modes, in each process
# Steps that one of two masks owns before the other takes over.
TRAFFIC = {"alternating, step by step": 1, "turns of 20 steps": 20}
MODES: tuple[MaskMode, ...] = ("auto", "delta", "scatter")


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
                    f"{of[0]['in_place']:.0f} of {scale.alternation_steps}",
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
    """One process: {"found": traffic -> mode -> figures}, the modes in turns."""
    import torch
    from bmt_server.worker.runtime import MaskRuntime

    gates = swap.live_gates(job["layers"])
    x = torch.randn(_TOKENS, gates[0].base.shape[1]).bfloat16()
    players = {mode: Player(MaskRuntime(gates, mode, 1 << 30), x) for mode in MODES}
    found: dict[str, dict[str, Any]] = {}
    for traffic, turn in TRAFFIC.items():
        rounds: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
        for number in range(_ROUNDS + 1):
            for mode in MODES if number % 2 else reversed(MODES):
                played = players[mode].play(turn, job["steps"])
                if number:  # the first round warms up
                    rounds[mode].append(played)
        found[traffic] = {
            mode: {key: median([r[key] for r in of]) for key in of[0]}
            for mode, of in rounds.items()
        }
    kernel = players["auto"].runtime.stats.kernel
    return {"found": found, "layers": len(gates), "kernel": kernel}


class Player:
    """Plays steps on one mode's runtime, whose masks are 1 and 2, and leaves the base behind."""

    def __init__(self, runtime: Any, x: Any) -> None:
        self.runtime, self._x = runtime, x
        self._handles = runtime.handles()
        for adapter in (1, 2):
            layout = swap.layout(len(runtime.gates), seed=adapter)
            runtime.add(adapter, f"m{adapter}@0", layout)

    def play(self, turn: int, steps: int) -> dict[str, float]:
        """The masks take turns of `turn` steps."""
        switches, start = self.runtime.live_weights.switches, time.perf_counter()
        kinds = [self._step(1 + (number // turn) % 2) for number in range(steps)]
        seconds = time.perf_counter() - start
        switched = self.runtime.live_weights.switches - switches
        self.runtime.live_weights.switch(None)  # the next mode starts from the base
        return {
            "steps_per_s": steps / seconds,
            "switches_per_s": switched / seconds,
            "in_place": kinds.count("in_place"),
        }

    def _step(self, owner: int) -> str:
        import numpy as np
        import torch

        kind = self.runtime.begin_step(np.full(self._x.shape[0], owner))
        for gate, handle in zip(self.runtime.gates, self._handles, strict=True):
            y = torch.nn.functional.linear(self._x, gate.live)
            torch.ops.bmt.masked_delta(y, self._x, handle)
        return str(kind)
