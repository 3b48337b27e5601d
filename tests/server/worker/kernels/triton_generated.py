"""Generated cases for the Triton kernels in the interpreter; `test_triton.py` runs this file.

A case is a model, a rank's rows of it, masks, and a sequence of steps; each step is compared with
the fp32 loop. BMT_TRITON_CASES: number of cases, from 100 on with full batches.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels import reference
from bmt_server.worker.kernels.triton.kernel import TritonKernel
from bmt_server.worker.runtime import MaskRuntime

from tests.support.kernels.launches import record, replay
from tests.support.worker import dense, gates, keep_of, laid_out, random_mask

CASES = int(os.environ.get("BMT_TRITON_CASES", "30"))
ROWS, COLUMNS = [1, 2, 63, 64, 65, 70, 96, 127, 128, 129, 200], [1, 2, 7, 31, 64, 65, 96, 200, 257]
DENSITIES = [0.0, 0.002, 0.02, 0.2, 0.6, 1.0]
TOKENS = [1, 3, 4, 5, 15, 16, 17, 31, 33, 64, 100, 130, 256]
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


@dataclass(frozen=True)
class Case:
    """seed; gate [rows, columns] of one of `ranks` workers; tokens of the longest step; graph: its
    tokens, with padding, 0 for none."""

    seed: int
    rows: int
    columns: int
    dtype: torch.dtype
    rank: int
    ranks: int
    masks: int
    density: float
    tokens: int
    graph: int
    mode: str


def fixed() -> list[Case]:
    """Full batches: many masks, few, one; a slice of a model in a padded graph."""
    shape = {"dtype": torch.bfloat16, "rank": 0, "ranks": 1, "density": 0.02, "mode": "delta"}
    shape |= {"rows": 70, "columns": 96}
    return [
        Case(**(shape | own))
        for own in (
            {"seed": 0, "masks": 256, "tokens": 512, "graph": 512},
            {"seed": 1, "masks": 16, "tokens": 256, "graph": 272, "rank": 1, "ranks": 2},
            {"seed": 2, "masks": 1, "tokens": 512, "graph": 512, "mode": "auto"},
            {"seed": 3, "masks": 64, "tokens": 256, "graph": 0, "dtype": torch.float32},
        )
    ]


def generated(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    ranks = int(rng.choice([1, 1, 2, 3]))
    tokens = int(rng.choice(TOKENS))
    return Case(
        seed=seed,
        rows=int(rng.choice(ROWS)),
        columns=int(rng.choice(COLUMNS)),
        dtype=list(DTYPES)[rng.integers(3)],
        rank=int(rng.integers(ranks)),
        ranks=ranks,
        masks=int(rng.choice([1, 2, 3, 5, 16])),
        density=float(rng.choice(DENSITIES)),
        tokens=tokens,
        graph=int(rng.choice([0, tokens, tokens + rng.integers(1, 40)])),
        mode=str(rng.choice(["delta", "auto", "scatter"])),
    )


class Model:
    """The runtime of a case, and its masks, dense, by adapter id."""

    def __init__(self, case: Case, folder) -> None:
        self.case = case
        shape = (case.rows * case.ranks, case.columns)
        slices = {"rank": case.rank, "ranks": case.ranks}
        self.gates: list[GateLayer] = gates(2, shape=shape, dtype=case.dtype, **slices)
        most = 513 + 64
        graphs = {"graph_tokens": case.graph, "max_tokens": most}
        kernel = TritonKernel(self.gates, memory_bytes=1 << 24, **graphs)
        self.runtime = MaskRuntime(self.gates, case.mode, 1 << 24, kernel)
        zeros = round(shape[0] * shape[1] * case.density)
        self.masks = [
            random_mask(1000 * case.seed + i, shape=shape, zeros=zeros) for i in range(case.masks)
        ]
        self.bits = [bits(gate.live).clone() for gate in self.gates]
        self.folder = folder

    def load(self) -> None:
        for i, mask in enumerate(self.masks):
            self.runtime.add(i + 1, f"m{i}", laid_out(mask, self.folder))

    def inputs(self, tokens: int, layer: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, K] and y [T, 2R], whose gate part is the base's product."""
        gate = self.gates[layer]
        x = torch.randn(tokens, gate.shape[1], generator=torch.Generator().manual_seed(seed))
        x = x.to(gate.base.dtype)
        base = self.base(layer)
        product = (x.float() @ base.float().t()).to(base.dtype)
        return x, torch.cat([product, torch.ones_like(product)], dim=1)

    def base(self, layer: int) -> torch.Tensor:
        return self.bits[layer].view(self.case.dtype)

    def steps(self) -> list[np.ndarray]:
        """Compositions: blocks of a mask, interleaved, at random, with the base, of one mask."""
        rng, n, t = np.random.default_rng(self.case.seed), self.case.masks, self.case.tokens
        one = np.full(t, rng.integers(1, n + 1))
        if self.case.mode == "scatter":
            return [one, np.zeros(t), np.full(max(t // 2, 1), n), one, np.zeros(1)]
        mixed = [
            np.arange(t) % n + 1,
            np.repeat(np.arange(n), -(-t // n))[:t],
            rng.integers(0, n + 1, rng.integers(1, t + 1)),
            np.where(rng.random(t) < 0.2, rng.integers(0, n + 1, t), one),
            one,
            np.zeros(t),
        ]
        # The interpreter takes seconds for a step of hundreds of tokens.
        most = 4096 if CASES >= 100 else 128
        some = 3 if n * t > most else len(mixed)
        return [mixed[i] for i in rng.permutation(len(mixed))[:some]]

    def check(self, chosen: np.ndarray, x, y, before, layer: int) -> None:
        """y after a step against the fp32 loop, and every bit that may not change."""
        case, r = self.case, self.gates[layer].shape[0]
        padded = np.zeros(len(x), np.int64)
        padded[: len(chosen)] = chosen
        keep = keep_of(self.masks, layer, self.gates[layer].rows)
        want = reference.masked_delta(before, x, self.base(layer), keep, padded)
        error = (y[:, :r].float() - want).abs()
        allowed = DTYPES[case.dtype] * want.abs() + 1e-4
        assert bool((error <= allowed).all()), (case, float((error - allowed).max()))
        assert torch.equal(y[:, r:], before[:, r:]), "the up projection is unchanged"
        plain = torch.from_numpy(padded == 0)
        assert torch.equal(bits(y[plain]), bits(before[plain])), "base tokens keep every bit"

    def check_weights(self, adapter: int) -> None:
        """The live weights are the base's under the mask, bit for bit; 0: the base's."""
        for layer, gate in enumerate(self.gates):
            want = self.bits[layer]
            if adapter:
                kept = dense(self.masks[adapter - 1], layer)[slice(*gate.rows)]
                want = torch.where(kept.bool(), want, torch.zeros_like(want))
            assert torch.equal(bits(gate.live), want), (self.case, adapter)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


CHOSEN = [*(fixed() if CASES >= 100 else []), *map(generated, range(CASES))][:CASES]


@pytest.mark.parametrize("case", CHOSEN, ids=range(len(CHOSEN)))
def test_generated_case(tmp_path, monkeypatch, case):
    run(case, tmp_path, monkeypatch)


def run(case: Case, folder, monkeypatch) -> None:
    model = Model(case, folder)
    runtime, layer = model.runtime, case.seed % 2
    handle = runtime.handles()[layer]
    launches: list[tuple] = []
    size = case.graph or case.tokens
    x, y = model.inputs(size, layer, case.seed)
    if case.graph:
        # Captured before any mask is known, as vLLM does; in graphs the buffers keep their places.
        runtime.prepare_capture(size)
        launches = record(monkeypatch)
        before = y.clone()
        torch.ops.bmt.masked_delta(y, x, handle)
        assert torch.equal(bits(y), bits(before)), "a capture changes nothing"
        monkeypatch.undo()
        assert launches
    model.load()
    for step, adapters in enumerate(model.steps()):
        chosen = np.asarray(adapters, np.int64)
        rows = size if case.graph else len(chosen)
        new_x, new_y = model.inputs(rows, layer, 100 * case.seed + step)
        repeats = 40 if case.mode == "auto" and len(set(chosen.tolist())) == 1 else 1
        for _ in range(repeats):
            kind = runtime.begin_step(chosen)
        x[:rows].copy_(new_x)
        y[:rows].copy_(new_y)
        if case.graph:
            replay(launches)
        else:
            torch.ops.bmt.masked_delta(y[:rows], x[:rows], handle)
        sole = int(chosen[0])
        model.check_weights(sole if kind == "in_place" else 0)
        if kind == "corrected":
            model.check(chosen, new_x, y[:rows], new_y, layer)
        else:
            assert torch.equal(bits(y[:rows]), bits(new_y)), "the weights hold the mask, or none"
    runtime.begin_step(np.zeros(1, np.int64))
    model.check_weights(0)
