"""Changing the fine-tune in the weights: a mask in place against merging a LoRA adapter."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.section import Context
from benchmarks.harness.stats import estimate, median
from benchmarks.processes import task
from benchmarks.report.results import Baseline, Entry, Findings, Table

RANK = 16
_SHAPE = (14336, 4096)
WAYS = {
    "switch": "mask: revert one, apply another",
    "merge": f"peft: merge one LoRA r={RANK}",
    "unmerge": "peft: unmerge it",
    "addmm": f"in-place addmm_ of B [{_SHAPE[0]}, {RANK}] and A [{RANK}, {_SHAPE[1]}]",
}


def switch(context: Context) -> Findings:
    """Gates of an 8B model in bf16, in fresh processes, the ways in turns."""
    scale = context.scale
    runs: list[dict[str, Any]] = []
    for process in range(scale.processes):
        context.say(f"process {process + 1} of {scale.processes}: {scale.layers} layers")
        job = {"layers": scale.layers, "repeats": scale.repeats, "seed": process}
        runs.append(context.step(f"switch-{process}", task.run, "swap", job, context.work))
    times = {way: median([t for r in runs for t in r[way]]) for way in WAYS}
    entries = []
    for entry_id, other in (("switch_over_lora_merge", "merge"), ("switch_over_addmm", "addmm")):
        ratio = estimate(
            [[a / b for a, b in zip(r["switch"], r[other], strict=True)] for r in runs]
        )
        entries.append(
            Entry.estimated(
                entry_id,
                ratio,
                "ratio of seconds",
                Baseline(what=WAYS[other], value=round(times[other], 4), unit="s"),
                context.command,
                digits=6,
                note=f"1/{1 / ratio.value:.0f}",
            )
        )
    zeros = runs[0]["zeros"]
    rows = [
        (what, f"{times[way] * 1000:.1f}", f"{times[way] / times['switch']:.1f}")
        for way, what in WAYS.items()
    ]
    table = Table(
        title="Changing the fine-tune in the weights",
        header=("way", "ms", "over the mask"),
        rows=rows,
        note=f"{scale.layers} layers of {_SHAPE[0]} x {_SHAPE[1]} in bf16, {zeros:,} zeros "
        f"({inputs.SPARSITY:.1%}) a mask, {runs[0]['threads']} threads, "
        f"{scale.processes} processes x {scale.repeats} turns; in-place kernel: "
        f"{runs[0]['kernel']}.",
    )
    return Findings(entries=entries, tables=[table], samples={"runs": runs})


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One process. Seconds of each way, one a turn; the order changes from turn to turn."""
    import torch
    from bmt_server.worker.runtime import MaskRuntime

    gates = live_gates(job["layers"])
    runtime = MaskRuntime(gates, "scatter", 1 << 30)
    for adapter in (1, 2):
        runtime.add(adapter, f"m{adapter}@0", layout(len(gates), seed=2 * job["seed"] + adapter))
    # Their values are read from the weights now, which hold the base.
    weights, masks = runtime.live_weights, list(runtime.store.use((1, 2)).values())
    tuned = lora_model([g.base for g in gates])
    factors = [
        (torch.randn(_SHAPE[0], RANK).bfloat16() * 0.01, torch.randn(RANK, _SHAPE[1]).bfloat16())
        for _ in gates
    ]
    turn = 0

    def one_switch() -> None:
        weights.switch(masks[turn % 2])

    def addmm() -> None:
        for gate, (b, a) in zip(gates, factors, strict=True):
            gate.base.addmm_(b, a, alpha=1e-3)

    def group(name: str) -> dict[str, float]:
        if name == "switch":
            return {"switch": seconds(one_switch)}
        if name == "addmm":
            return {"addmm": seconds(addmm)}
        return {
            "merge": seconds(tuned.merge_adapter),
            "unmerge": seconds(tuned.unmerge_adapter),
        }

    found: dict[str, list[float]] = {way: [] for way in WAYS}
    names = ["switch", "merge", "addmm"]
    weights.switch(masks[1])
    for turn in range(-1, job["repeats"]):
        for name in names if turn % 2 else reversed(names):
            for way, spent in group(name).items():
                if turn >= 0:  # the first turn warms up
                    found[way].append(spent)
    zeros = masks[0].layers.zeros
    kernel, threads = runtime.stats.kernel, torch.get_num_threads()
    return {**found, "zeros": zeros, "threads": threads, "kernel": kernel}


def live_gates(layers: int) -> list[Any]:
    """An 8B model's first gates, [14336, 4096] in bf16, as a worker holds live weights."""
    import torch
    from bmt_server.worker.gate_layers import GateLayer

    first = torch.empty(_SHAPE, dtype=torch.bfloat16).normal_(0, 0.02)
    gates = []
    for name in list(inputs.GATES_8B)[:layers]:
        weight = first.clone()
        gates.append(GateLayer(name, (0, _SHAPE[0]), weight, weight))
    return gates


def layout(layers: int, seed: int) -> Any:
    """A random mask of an 8B model's first layers, as the worker maps it."""
    from bmt_server.ipc.mask_layout import map_layout, write_layout

    shapes = dict(list(inputs.GATES_8B.items())[:layers])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.lay"
        write_layout(inputs.random_mask(shapes, "0" * 64, seed), path)
        return map_layout(path)  # stays mapped when the file is gone


def lora_model(weights: list[Any]) -> Any:
    """peft's model of linear layers that hold these very weights, with one adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    blocks = torch.nn.ModuleList()
    for weight in weights:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        blocks.append(torch.nn.ModuleDict({"gate_proj": linear}))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["gate_proj"])
    tuned = get_peft_model(torch.nn.ModuleDict({"layers": blocks}), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 1e-4)
    return tuned


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
