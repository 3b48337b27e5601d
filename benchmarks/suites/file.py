"""The `.bmt` file of an 8B model's mask: how large, and how long until it can be used."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import inputs
from benchmarks.harness.section import Context
from benchmarks.harness.stats import estimate, median
from benchmarks.processes import task
from benchmarks.report.results import Baseline, Entry, Findings, Table

_OPENS = 5  # of our file a turn: it takes milliseconds, the baseline seconds


def open_and_size(context: Context) -> Findings:
    """Fresh processes, each on a mask of its own."""
    scale = context.scale
    runs: list[dict[str, Any]] = []
    for process in range(scale.processes):
        context.say(f"process {process + 1} of {scale.processes}: {scale.layers} layers")
        job = {"layers": scale.layers, "repeats": 1, "seed": process}
        runs.append(context.step(f"file-{process}", task.run, "file", job, context.work))
    opened = estimate([[t * 1000 for t in r["open"]] for r in runs])
    naive = median([t * 1000 for r in runs for t in r["naive"]])
    size = median([r["size"] / r["entropy"] for r in runs])
    packed = median([r["packed"] / r["entropy"] for r in runs])
    entries = [
        Entry.estimated(
            "open_8b_ms",
            opened,
            "ms",
            Baseline(
                what="zstd-3(packbits): numpy's unpackbits and flatnonzero",
                value=round(naive, 1),
                unit="ms",
            ),
            context.command,
            digits=2,
            note="read, verified and decoded; the file in the page cache",
        ),
        Entry(
            id="size_over_entropy",
            value=round(size, 4),
            unit="ratio of bytes",
            baseline=Baseline(
                what="zstd-3(packbits) over the bound",
                value=round(packed, 4),
                unit="ratio of bytes",
            ),
            command=context.command,
            note="the whole file over log2 of the number of such masks",
        ),
    ]
    last = runs[-1]
    rows = [
        ("`.bmt`", f"{last['size']:,}", f"{size:.3f}", f"{opened.value:.1f}"),
        ("zstd-3(packbits)", f"{last['packed']:,}", f"{packed:.3f}", f"{naive:.0f}"),
        ("entropy bound", f"{last['entropy']:,.0f}", "1", ""),
    ]
    table = Table(
        title="The file",
        header=("form", "bytes", "over the bound", "ms to positions"),
        rows=rows,
        note=f"{scale.layers} tensors of 14336 x 4096, {last['zeros']:,} zeros at random "
        f"({inputs.SPARSITY:.1%}); {scale.processes} processes, medians.",
    )
    return Findings(entries=entries, tables=[table], samples={"runs": runs})


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One process. Seconds to open, of us and of the plain way, in turns; sizes in bytes."""
    import bmt_core

    shapes = dict(list(inputs.GATES_8B.items())[: job["layers"]])
    mask = inputs.random_mask(shapes, "0" * 64, job["seed"])
    found: dict[str, list[float]] = {"open": [], "naive": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.bmt"
        bmt_core.save(mask, path)
        frames = [_pack(t) for t in mask.tensors]
        limits = bmt_core.Limits()
        bmt_core.load(path, limits=limits)
        for _ in range(job["repeats"]):
            for _ in range(_OPENS):
                start = time.perf_counter()
                opened = bmt_core.load(path, limits=limits)
                found["open"].append(time.perf_counter() - start)
            start = time.perf_counter()
            plain = [_unpack(frame) for frame in frames]
            found["naive"].append(time.perf_counter() - start)
        same = all((p == t.positions).all() for p, t in zip(plain, mask.tensors, strict=True))
        if opened != mask or not same:
            raise AssertionError("what was read is not what was written")
        size = path.stat().st_size
    return {
        **found,
        "size": size,
        "packed": sum(len(f) for f in frames),
        "entropy": sum(entropy_bits(t.numel, t.zeros) for t in mask.tensors) / 8,
        "zeros": mask.zeros,
    }


def entropy_bits(numel: int, zeros: int) -> float:
    """log2 of the number of ways to choose `zeros` of `numel` positions."""
    nats = math.lgamma(numel + 1) - math.lgamma(zeros + 1) - math.lgamma(numel - zeros + 1)
    return nats / math.log(2)


def _pack(tensor: Any) -> bytes:
    """The paper's form of one tensor: a bit a weight, 1 where it is kept, packed, zstd-3."""
    import numpy as np
    import zstandard

    kept = np.ones(tensor.numel, np.uint8)
    kept[tensor.positions] = 0
    return zstandard.ZstdCompressor(level=3).compress(np.packbits(kept).tobytes())


def _unpack(frame: bytes) -> Any:
    import numpy as np
    import zstandard

    packed = np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)
    return np.flatnonzero(np.unpackbits(packed) == 0)
