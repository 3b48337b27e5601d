"""Memory of a resident mask in a worker, in bytes a zero."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.section import Context
from benchmarks.processes import task
from benchmarks.report.results import Baseline, Entry, Findings, Table


def resident(context: Context) -> Findings:
    """Bytes a zero for an 8B model's shape and for the model that is served here."""
    jobs = {
        "bytes_per_zero": ("8B shape", {"layers": context.scale.layers}),
        "bytes_per_zero_small": (context.model.name, {"model": str(context.model)}),
    }
    entries, rows, samples = [], [], {}
    for entry_id, (what, job) in jobs.items():
        context.say(what)
        raw = context.step(entry_id, task.run, "memory", job, context.work)
        value = raw["bytes"] / raw["zeros"]
        baseline = raw["csr_bytes"] / raw["zeros"]
        samples[entry_id] = raw
        entries.append(
            Entry(
                id=entry_id,
                value=round(value, 4),
                unit="bytes a zero",
                baseline=Baseline(
                    what="torch's sparse CSR with 32-bit indices",
                    value=round(baseline, 3),
                    unit="bytes a zero",
                ),
                command=context.command,
                note=what,
            )
        )
        mib = f"{raw['bytes'] / 2**20:.2f}"
        rows.append((what, f"{raw['zeros']:,}", mib, f"{value:.3f}", f"{baseline:.3f}"))
    header = ("model", "zeros", "MiB", "bytes a zero", "CSR, bytes a zero")
    table = Table(title="A resident mask, bf16, 0.2 %", header=header, rows=rows)
    return Findings(entries=entries, tables=[table], samples=samples)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One mask made resident by the worker's own code. Bytes and zeros."""
    import tempfile

    import torch
    from bmt_server.ipc.mask_layout import map_layout, write_layout
    from bmt_server.worker.gate_layers import GateLayer
    from bmt_server.worker.runtime import MaskRuntime

    if "model" in job:
        import bmt_core

        shapes = bmt_core.geometry(Path(job["model"]))
    else:
        shapes = dict(list(inputs.GATES_8B.items())[: job["layers"]])
    # One weight stands for all layers: only its shape and type matter here.
    weights = {shape: torch.zeros(shape, dtype=torch.bfloat16) for shape in set(shapes.values())}
    gates = [GateLayer(name, (0, shape[0]), weights[shape]) for name, shape in shapes.items()]
    mask = inputs.random_mask(shapes, "0" * 64, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.lay"
        write_layout(mask, path)
        runtime = MaskRuntime(gates, "delta", 1 << 30)
        runtime.add(1, "m@0", map_layout(path))
    csr = 0
    for shape in shapes.values():
        zeros = round(math.prod(shape) * inputs.SPARSITY)
        sparse = torch.sparse_csr_tensor(
            torch.linspace(0, zeros, shape[0] + 1).int(),
            torch.zeros(zeros, dtype=torch.int32),
            torch.zeros(zeros, dtype=torch.bfloat16),
            size=shape,
            check_invariants=False,
        )
        parts = (sparse.crow_indices(), sparse.col_indices(), sparse.values())
        csr += sum(p.nbytes for p in parts)
    return {"bytes": runtime.store.resident_bytes, "zeros": mask.zeros, "csr_bytes": csr}
