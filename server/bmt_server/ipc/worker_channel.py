"""How API processes and workers talk about masks: beside vLLM's engine, not through it.

vLLM's own way to a worker is a call that the engine makes between two steps and waits for. A mask
that is loaded so holds up every running request, and the request that wants it waits for the end
of a step twice. So each worker listens on a Unix socket in the server's private folder, in a
thread of its own, and each API process is connected to all workers of its host.

One JSON object a line. A command has `do`, a number `n` to match the answer to it, and an adapter
`id`::

    {"n": 1, "do": "load", "id": 7, "name": "math@3f9c…", "source": "bmt:…"}
        make it resident; the sender holds it from now on
    {"n": 2, "do": "drop", "id": 7}                    the sender needs it no more
    {"n": 3, "do": "pin", "id": 7, "pinned": true}     exempt from eviction, or no longer
    {"n": 4, "do": "ping"}

An answer is `{"n": 1, "done": true}` or `{"n": 1, "error": "…", "code": "…"}`. Unasked, a worker
tells `{"evicted": [7, …]}`: not in memory any more, and mapped still while anybody holds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Code = Literal["unavailable", "unusable", "full", "pinned"]


class WorkerError(Exception):
    """A worker could not do what it was asked; the message says why."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code: Code = code


# A line is a few hundred bytes; a longer one is not ours.
MAX_LINE = 1 << 16


def socket_path(folder: str | Path, rank: int) -> Path:
    """Where the worker with this rank, over all data-parallel engines, listens."""
    return Path(folder) / f"w{rank}.sock"


def encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but one JSON object."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"not an object: {line[:80]!r}")
    return value
