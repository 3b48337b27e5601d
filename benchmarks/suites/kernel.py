"""The masked delta on the CPU: time of the corrections of a step, by kernel.

    python -m benchmarks.suites.kernel                   SmolLM2's shapes, then an 8B model's
    python -m benchmarks.suites.kernel --only smollm2 --sparsity 0.0045 --threads 1

Every case runs the fused gate and up product of each layer, as a model would, and times each
kernel's op behind it in turns: so the masks' arrays come from memory as they do in serving, and
base and kernels see the same machine. Prints medians in ms a step over all layers and writes
benchmarks/results/latest/kernel.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from bmt_server.ipc.mask_layout import Layout, Rows
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels import masked_delta
from bmt_server.worker.kernels.portable import PortableKernel
from bmt_server.worker.kernels.selection import choose_kernel
from bmt_server.worker.resident_mask import ResidentMask, load_mask

RESULTS = Path(__file__).resolve().parents[1] / "results" / "latest" / "kernel.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model's gates: `layers` of them measured, [rows, cols], and how many the model has."""

    name: str
    rows: int
    cols: int
    layers: int
    of: int


# Four layers of the 8B shape are 0.9 GB of weights: past every cache, and quick to make.
SHAPES = (
    Shape(name="smollm2", rows=1536, cols=576, layers=30, of=30),
    Shape(name="8b", rows=14336, cols=4096, layers=4, of=32),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A step: `tokens`, each of one of `masks` masks, in runs of equal length."""

    tokens: int
    masks: int

    def steps(self, count: int) -> Iterator[np.ndarray]:
        """int64 [tokens] of adapter ids; more masks than tokens take turns over the steps."""
        at_once = min(self.masks, self.tokens)
        for i in range(count):
            chosen = (i * at_once + np.arange(at_once)) % self.masks + 1
            yield np.sort(np.resize(chosen, self.tokens)).astype(np.int64)


CASES = tuple(
    Case(tokens=t, masks=m)
    for t, m in ((1, 1), (8, 1), (8, 8), (32, 1), (32, 16), (32, 32), (32, 1000))
)
PREFILL = tuple(Case(tokens=t, masks=m) for t, m in ((512, 1), (2048, 1), (2048, 16)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One line. ms and base_ms: medians of a step over all of the model's layers."""

    shape: str
    dtype: str
    sparsity: float
    tokens: int
    masks: int
    kernel: str
    ms: float
    base_ms: float
    threads: int


class Model:
    """Fused weights [2R, K] of every layer, and one kernel of each kind over their gates."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, kernels: Sequence[type[masked_delta.Kernel]]
    ):
        generator = torch.Generator().manual_seed(0)
        self.shape, self.dtype = shape, dtype
        size = (2 * shape.rows, shape.cols)
        self.fused = [
            torch.randn(size, generator=generator, dtype=dtype) * 0.02 for _ in range(shape.layers)
        ]
        self.gates = [
            GateLayer(str(i), (0, shape.rows), w[: shape.rows]) for i, w in enumerate(self.fused)
        ]
        self.kernels = [kernel(self.gates) for kernel in kernels]
        self.handles = [
            masked_delta.register_layers(kernel, shape.layers) for kernel in self.kernels
        ]
        self.masks: dict[int, ResidentMask] = {}

    def make_masks(self, count: int, sparsity: float) -> None:
        for adapter in range(len(self.masks) + 1, count + 1):
            rng = np.random.default_rng(adapter)
            tensors = {g.name: random_rows(g.shape, sparsity, rng) for g in self.gates}
            layout = Layout(f"{adapter:064x}", tensors)
            self.masks[adapter] = load_mask(layout, self.gates, self.kernels[0].to_device)


def random_rows(shape: tuple[int, int], sparsity: float, rng: np.random.Generator) -> Rows:
    """Uniform random zeros as `wire` lays them out."""
    rows, cols = shape
    places = np.unique(rng.integers(rows * cols, size=round(rows * cols * sparsity)))
    start = np.zeros(rows + 1, np.uint32)
    np.cumsum(np.bincount(places // cols, minlength=rows), out=start[1:])
    return Rows(shape, start, (places % cols).astype(np.uint16 if cols <= 1 << 16 else np.uint32))


def measure(model: Model, case: Case, sparsity: float, repeats: int) -> list[Figure]:
    """Medians of every kernel of the model, and of the product they come behind."""
    x = torch.randn(case.tokens, model.shape.cols).to(model.dtype)
    op = torch.ops.bmt.masked_delta.default
    base: list[float] = []
    taken: list[list[float]] = [[] for _ in model.kernels]
    for i, tokens in enumerate(case.steps(repeats + 1)):
        masks: Mapping[int, ResidentMask] = {a: model.masks[a] for a in set(tokens.tolist())}
        for kernel in model.kernels:
            kernel.plan(tokens, masks)
        spent = [0.0] * (1 + len(model.kernels))
        for layer, weight in enumerate(model.fused):
            for k, handles in enumerate(model.handles):
                start = time.perf_counter()
                y = torch.nn.functional.linear(x, weight)
                middle = time.perf_counter()
                op(y, x, handles[layer])
                spent[k + 1] += time.perf_counter() - middle
                spent[0] += (middle - start) / len(model.handles)
        for times, seconds in zip([base, *taken], spent, strict=True):
            # The first step of a case makes what later ones reuse.
            times += [seconds] if i else []
        for kernel in model.kernels:
            kernel.idle()
    scale = 1000 * model.shape.of / model.shape.layers
    return [
        Figure(
            shape=model.shape.name,
            dtype=str(model.dtype).removeprefix("torch."),
            sparsity=sparsity,
            tokens=case.tokens,
            masks=case.masks,
            kernel=kernel.name,
            ms=scale * statistics.median(times),
            base_ms=scale * statistics.median(base),
            threads=torch.get_num_threads(),
        )
        for kernel, times in zip(model.kernels, taken, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[s.name for s in SHAPES])
    parser.add_argument("--sparsity", type=float, default=0.002)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--most-masks", type=int, help="leave out cases with more")
    parser.add_argument("--without-portable", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    kernels: list[type[masked_delta.Kernel]] = [choose_kernel(torch.device("cpu"), print)]
    if kernels[0] is not PortableKernel and not options.without_portable:
        kernels.append(PortableKernel)
    figures: list[Figure] = []
    print(
        f"{'shape':8} {'tokens':>6} {'masks':>5} {'kernel':8} {'ms':>9} {'product':>9} {'share':>7}"
    )
    for shape in SHAPES:
        if options.only not in (None, shape.name):
            continue
        # A thousand masks of an 8B model are 15 GB; 64 are beyond any cache already.
        most = min(options.most_masks or 1000, 1000 if shape.name == "smollm2" else 32)
        model = Model(shape, getattr(torch, options.dtype), kernels)
        for case in (*CASES, *PREFILL):
            if case.masks > most:
                continue
            model.make_masks(case.masks, options.sparsity)
            for f in measure(model, case, options.sparsity, options.repeats):
                figures.append(f)
                print(
                    f"{f.shape:8} {f.tokens:6} {f.masks:5} {f.kernel:8} {f.ms:9.3f} "
                    f"{f.base_ms:9.2f} {f.ms / f.base_ms:7.1%}",
                    flush=True,
                )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(f) for f in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
