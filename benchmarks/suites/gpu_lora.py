"""LoRA kernels of vLLM on a GPU: the time they add to a step, compared with masks.

    python -m benchmarks.suites.gpu_lora    after the suite gpu; shapes of an 8B Llama

The kernels are vLLM's Triton kernels for several adapters (`vllm/lora/ops/triton_ops`), called as
its `punica_gpu.py` calls them: shrink, then expand, for each fused projection. The baseline is that
of `gpu.py`, the product of gate and up of each layer, so figures of both stand side by side; a CUDA
graph a figure, medians by events. Prints a table and writes results/latest/gpu-lora.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.suites.gpu import RESULTS, Figure, Race, captured, keep, on_gpu, table

LAYERS, HIDDEN, MIDDLE, KEYS = 32, 4096, 14336, 1024
COMMAND = "python -m benchmarks.suites.gpu_lora"
# Fused projections by name: columns in, and the rows of each slice out.
Projections = dict[str, tuple[int, tuple[int, ...]]]
GATE_UP: Projections = {"gate_up": (HIDDEN, (MIDDLE, MIDDLE))}
ALL: Projections = {
    "qkv": (HIDDEN, (HIDDEN, KEYS, KEYS)),
    "o": (HIDDEN, (HIDDEN,)),
    **GATE_UP,
    "down": (MIDDLE, (HIDDEN,)),
}


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters of one fused projection in all layers: A [n, r, K] and B [n, R, r] a slice."""

    down: list[list[torch.Tensor]]
    up: list[list[torch.Tensor]]
    rows: int


class Lora:
    """`count` adapters of rank `rank` on `projections`, in every layer."""

    def __init__(self, projections: Projections, count: int, rank: int):
        from vllm.lora.ops.triton_ops import LoRAKernelMeta

        self.rank, self.projections = rank, projections
        self.meta = LoRAKernelMeta.make(count, 8192, device="cuda")
        self.adapters = {
            name: Adapters(
                [[_random(count, rank, cols) for _ in slices] for _ in range(LAYERS)],
                [[_random(count, r, rank) for r in slices] for _ in range(LAYERS)],
                sum(slices),
            )
            for name, (cols, slices) in projections.items()
        }

    def add(self, name: str, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        """y [T, R of all slices] += (x A) B, each token by its own adapter."""
        from vllm.lora.ops.triton_ops import lora_expand, lora_shrink

        adapters, tokens = self.adapters[name], x.shape[0]
        slices, meta = len(adapters.down[layer]), self.meta.meta_args(tokens, False)
        inner = torch.empty(slices, tokens, self.rank, dtype=torch.float32, device=x.device)
        lora_shrink(x, adapters.down[layer], inner, *meta, 1.0)
        lora_expand(inner, adapters.up[layer], y, *meta, offset_start=0, add_inputs=True)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.01


def figures(race: Race, weights: list[torch.Tensor], counts: tuple[int, ...]) -> Iterator[Figure]:
    """Milliseconds a layer that LoRA adds, over the product of gate and up."""
    for what, projections in (("gate_up", GATE_UP), ("all", ALL)):
        for rank in (1, 16):
            lora = Lora(projections, max(counts), rank)
            for tokens in counts:
                for name in ("one", "each_its_own"):
                    chosen = torch.arange(tokens) if name != "one" else torch.zeros(tokens)
                    lora.meta.prepare_tensors(chosen.int().cuda())
                    x = {c: _random(tokens, c) for c, _ in projections.values()}
                    y = {n: _random(tokens, a.rows) for n, a in lora.adapters.items()}
                    x.setdefault(HIDDEN, _random(tokens, HIDDEN))
                    bare = partial(_step, weights, x[HIDDEN], None, x, y)
                    ours = partial(_step, weights, x[HIDDEN], lora, x, y)
                    base, with_lora = race(bare, ours)
                    label = f"gpu_lora_{what}_r{rank}_decode_{tokens}_{name}"
                    added = (with_lora - base) / LAYERS
                    yield Figure(label, added, "ms/layer", base / LAYERS, COMMAND)


def _step(
    weights: list[torch.Tensor],
    x: torch.Tensor,
    lora: Lora | None,
    inputs: dict[int, torch.Tensor],
    outputs: dict[str, torch.Tensor],
) -> None:
    for layer, weight in enumerate(weights):
        product = x @ weight.t()
        if lora is None:
            continue
        for name, (cols, _) in lora.projections.items():
            y = product if name == "gate_up" else outputs[name]
            lora.add(name, layer, y, inputs[cols])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=21, help="turns of each comparison")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("gpu_lora: this machine has no CUDA device")
    torch.manual_seed(0)
    weights = [_random(2 * MIDDLE, HIDDEN) for _ in range(LAYERS)]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.pairs} turns each")
    found = list(figures(on_gpu(options.pairs, captured), weights, (1, 8, 32, 64)))
    print(table(found))
    keep(found, RESULTS.with_name("gpu-lora.json"))


if __name__ == "__main__":
    main()
