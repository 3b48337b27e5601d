"""Rates of the machine that bound a step: bytes that it reads from memory, and multiply-adds.

The best of several tries, for a limit is what nothing else disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

# Past every cache: a virtual machine sees the whole host's, which can be hundreds of MiB.
_READ_BYTES = 2 << 30
_SIDE = 2048
_TRIES = 7


def measure(job: dict[str, Any]) -> dict[str, float]:
    """Bytes and operations a second, for `task.run`.

    job: {"dtype": that of the engines}. A multiply-add is two operations, as in a model's FLOPs.
    """
    import torch

    values = torch.ones(_READ_BYTES // 4, dtype=torch.float32)
    sums = _READ_BYTES / _best(values.sum)
    rows, one = values.view(-1, 8192), torch.ones(8192)
    products = _READ_BYTES / _best(partial(torch.mv, rows, one))
    del values, rows
    dtype = getattr(torch, job["dtype"])
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    operations = 2 * _SIDE**3 / _best(partial(torch.mm, a, b))
    return {"bytes_per_s": max(sums, products), "operations_per_s": operations}


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest try; the first one warms up."""
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
