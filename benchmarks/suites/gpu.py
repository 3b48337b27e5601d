"""GPU kernels: what the correction adds to the gate product, and the time of a switch in place.

    python -m benchmarks.suites.gpu          8B shapes: 32 layers of 14336 x 4096 bf16, 0.2 % zeros
    python -m benchmarks.suites.gpu --sweep  the correction again with other sizes of its programs

Every figure and its baseline come from the same run, taken in turns: the medians of their times
by CUDA events are compared. Corrections and products are captured as CUDA graphs and replayed, as
in a step; switches are enqueued as they are between steps, outside of graphs. Prints a table and
writes benchmarks/results/latest/gpu.json. Without a CUDA device it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bmt_server.ipc.mask_layout import Layout, Rows
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.resident_mask import ResidentMask, load_mask

RESULTS = Path(__file__).resolve().parents[1] / "results" / "latest" / "gpu.json"

Work = Callable[[], object]
# Milliseconds of each of two works, taken by turns.
Race = Callable[[Work, Work], tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """A measurement: shapes as in `gate_layers.py`, share of zeros, masks, tokens of a step.

    graphs: most tokens of a step in a CUDA graph, by default vLLM's on a large GPU.
    """

    layers: int = 32
    rows: int = 14336
    cols: int = 4096
    sparsity: float = 0.002
    masks: int = 64
    decode: tuple[int, ...] = (1, 8, 32, 64)
    prefill: tuple[int, ...] = (1024, 8192)
    graphs: int = 512
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: `value` of ours, `baseline` of what it is compared with."""

    id: str
    value: float
    unit: str
    baseline: float
    command: str = "python -m benchmarks.suites.gpu"


class Model:
    """Fused weights [2R, K] of every layer, and masks with random zeros in their gates."""

    def __init__(self, sizes: Sizes, device: torch.device, kernel: Callable[..., Any]) -> None:
        self.sizes, self.device = sizes, device
        shape = (2 * sizes.rows, sizes.cols)
        self.weights = [
            torch.randn(shape, device=device, dtype=sizes.dtype) * 0.02 for _ in range(sizes.layers)
        ]
        gates = [
            GateLayer(f"gate{i}", (0, sizes.rows), w[: sizes.rows], w[: sizes.rows])
            for i, w in enumerate(self.weights)
        ]
        zeros = round(sizes.rows * sizes.cols * sizes.sparsity)
        memory = sizes.masks * sizes.layers * (zeros * 6 + sizes.rows * 6 + 4096)
        most = max(*sizes.decode, *sizes.prefill)
        # Prefill runs outside of graphs in vLLM; here too it may take its own way.
        self.kernel = kernel(gates, memory_bytes=memory, max_tokens=most, graph_tokens=sizes.graphs)
        layouts = list(_layouts(sizes, zeros))
        self.masks: dict[int, ResidentMask] = {
            i + 1: load_mask(layouts[i % len(layouts)], gates, self.kernel.to_device)
            for i in range(sizes.masks)
        }

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Gate and up of every layer, what a step computes without masks; the last one's."""
        for weight in self.weights:
            y = x @ weight.t()
        return y

    def corrected(self, x: torch.Tensor) -> torch.Tensor:
        for layer, weight in enumerate(self.weights):
            y = x @ weight.t()
            self.kernel.run(layer, y, x)
        return y


def _layouts(sizes: Sizes, zeros: int) -> Iterator[Layout]:
    """A few patterns, shared by the masks: each mask has memory of its own all the same."""
    rng = np.random.default_rng(0)
    r, k = sizes.rows, sizes.cols
    for _ in range(min(sizes.masks, 4)):
        tensors = {}
        for layer in range(sizes.layers):
            flat = np.unique(rng.integers(0, r * k, zeros))
            start = np.searchsorted(flat, np.arange(r + 1) * k).astype(np.uint32)
            wide = np.uint16 if k <= 1 << 16 else np.uint32
            tensors[f"gate{layer}"] = Rows((r, k), start, (flat % k).astype(wide))
        yield Layout("pattern", tensors)


def compositions(tokens: int, masks: int) -> dict[str, np.ndarray]:
    """Each token's mask in the steps that are measured, int64 [T]."""
    return {
        "one mask": np.ones(tokens, np.int64),
        "each its own": np.arange(tokens) % masks + 1,
        "8 prompts": np.arange(tokens) * 8 // tokens % masks + 1,
    }


def corrections(model: Model, race: Race) -> Iterator[Figure]:
    """Milliseconds a layer that the correction adds to the fused product of gate and up."""
    sizes, each = model.sizes, model.sizes.layers
    for kind, counts in (("decode", sizes.decode), ("prefill", sizes.prefill)):
        for tokens in counts:
            x = torch.randn(tokens, sizes.cols, device=model.device, dtype=sizes.dtype)
            for name, chosen in compositions(tokens, sizes.masks).items():
                if name == ("8 prompts" if kind == "decode" else "each its own"):
                    continue
                model.kernel.plan(chosen, model.masks)
                bare, masked = race(partial(model.product, x), partial(model.corrected, x))
                label = f"{kind}_{tokens}_{name.replace(' ', '_')}"
                yield Figure(f"gpu_delta_{label}", (masked - bare) / each, "ms/layer", bare / each)
    tokens = max(sizes.decode)
    x = torch.randn(tokens, sizes.cols, device=model.device, dtype=sizes.dtype)
    # As in a graph that was captured for masks and runs a step of the base, or one in place.
    model.kernel.plan(np.zeros(tokens, np.int64), {})
    bare, masked = race(partial(model.product, x), partial(model.corrected, x))
    yield Figure(f"gpu_delta_base_{tokens}", (masked - bare) / each, "ms/layer", bare / each)


def switches(model: Model, race: Race) -> Iterator[Figure]:
    """Milliseconds of a switch of the whole model, over two ways that adapters are merged."""
    kernel, (one, two) = model.kernel, list(model.masks.values())[:2]
    gates = [weight[: model.sizes.rows] for weight in model.weights]
    places = [(m.rows(), m.cols.long(), m.values) for m in one.layers]
    rank = 16
    up = [torch.zeros(g.shape[0], rank, device=g.device, dtype=g.dtype) for g in gates]
    down = [torch.zeros(rank, g.shape[1], device=g.device, dtype=g.dtype) for g in gates]

    def both() -> None:
        kernel.switch(None, one)
        kernel.switch(one, None)

    def between() -> None:
        kernel.switch(one, two)
        kernel.switch(two, one)

    def merged() -> None:
        for gate, a, b in zip(gates, up, down, strict=True):
            gate.addmm_(a, b)

    def written() -> None:
        for gate, (rows, cols, values) in zip(gates, places, strict=True):
            gate.index_put_((rows, cols), values)

    ours, merge = race(both, merged)
    yield Figure("gpu_switch_over_lora_merge", ours / 2, "ms", merge)
    ours, write = race(both, written)
    yield Figure("gpu_switch_over_index_put", ours / 2, "ms", write)
    kernel.switch(None, one)
    ours, merge = race(between, merged)
    kernel.switch(one, None)
    yield Figure("gpu_switch_to_another_mask_over_lora_merge", ours / 2, "ms", merge)


def on_gpu(pairs: int, prepare: Callable[[Work], Work]) -> Race:
    """Race of what `prepare` makes of the works, by events: `pairs` turns, medians."""

    def race(a: Work, b: Work) -> tuple[float, float]:
        works = [prepare(a), prepare(b)]
        taken: list[list[float]] = [[], []]
        for _ in range(pairs):
            for work, times in zip(works, taken, strict=True):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                work()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
        return statistics.median(taken[0]), statistics.median(taken[1])

    return race


def captured(work: Work) -> Work:
    """The work as a CUDA graph, warm."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return enqueued(graph.replay)


def enqueued(work: Work) -> Work:
    """The work as it is, warm."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    return work


def table(figures: list[Figure]) -> str:
    lines = [f"{'':48} {'ours':>10} {'baseline':>10} {'ratio':>8}"]
    lines += [
        f"{f.id:48} {f.value:10.4f} {f.baseline:10.4f} {f.value / f.baseline:8.3f}  {f.unit}"
        for f in figures
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=21, help="turns of each comparison")
    parser.add_argument("--masks", type=int, default=64, help="resident masks, 15 MB each")
    parser.add_argument("--sweep", action="store_true", help="try other sizes of programs")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("gpu: this machine has no CUDA device, so nothing was measured")
    from bmt_server.worker.kernels.triton.kernel import TritonKernel

    torch.manual_seed(0)
    device, race = torch.device("cuda"), on_gpu(options.pairs, captured)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.pairs} turns each")
    model = Model(Sizes(masks=options.masks), device, TritonKernel)
    figures = [*corrections(model, race), *switches(model, on_gpu(options.pairs, enqueued))]
    print(table(figures))
    keep(figures)
    if options.sweep:
        sweep(model, race)


def sweep(model: Model, race: Race) -> None:
    """The corrections again with other sizes of programs: microseconds a layer, as in the table."""
    from bmt_server.worker.kernels.triton import delta

    everything = model.sizes
    model.sizes = replace(everything, prefill=())
    shapes = [(128, 8, 4), (128, 8, 2), (128, 8, 1), (128, 8, 8), (128, 4, 4), (64, 8, 1)]
    shapes += [(64, 8, 4), (64, 4, 2), (32, 8, 1), (32, 16, 1), (32, 4, 1), (256, 8, 4)]
    for (rows, width, warps), programs, staged in itertools.product(
        shapes, (1024, 3072), (0, max(everything.decode))
    ):
        delta.ROWS, delta.WIDTH, delta.WARPS = rows, width, warps
        delta.PROGRAMS, delta.STAGE_TOKENS = programs, staged
        print(f"{rows:4} rows, {width:2} zeros, {warps} warps, {programs} programs", end="")
        print(f", x {'staged' if staged else 'gathered'}:", end="")
        print(*(f"{f.value * 1000:6.1f}" for f in corrections(model, race)))
    # With 64 masks a step of 256 tokens has 64 tiles, or 16 of one mask.
    model.sizes = replace(everything, decode=(256,))
    for rows, warps, zeros in itertools.product((16, 32, 64, 128), (1, 2, 4), (2, 4)):
        delta.TILE_ROWS, delta.TILE_WARPS, delta.TILE_ZEROS = rows, warps, zeros
        print(f"{rows:4} rows of a tile, {warps} warps, {zeros} zeros:", end="")
        print(*(f"{f.value * 1000:6.1f}" for f in corrections(model, race)))
    model.sizes = everything


def keep(figures: list[Figure], path: Path = RESULTS) -> None:
    """Write figures in the form of all parts' results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([record(f) for f in figures], indent=1) + "\n")


def record(figure: Figure) -> dict[str, Any]:
    """The form of all parts' results."""
    return {
        "id": figure.id,
        "value": figure.value,
        "unit": figure.unit,
        "baseline": figure.baseline,
        "command": figure.command,
    }


if __name__ == "__main__":
    main()
