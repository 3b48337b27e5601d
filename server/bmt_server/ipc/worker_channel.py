"""Message format between API processes and workers, over Unix sockets that bypass vLLM's engine.

vLLM's own call to a worker runs between two steps, and the engine waits for it. Loading a mask that
way delays every running request, and the request that needs the mask waits for the end of a step
twice. So each worker listens on a Unix socket in the server's private folder, in a thread of its
own, and each API process connects to all workers of its host.

One JSON object per line. A command has `do`, a number `n` that its answer repeats, and an adapter
`id`::

    {"n": 1, "do": "load", "id": 7, "name": "math@3f9c…", "source": "bmt:…"}
        make it resident and hold it for the sender
    {"n": 2, "do": "drop", "id": 7}                    end the sender's hold
    {"n": 3, "do": "pin", "id": 7, "pinned": true}     exempt it from eviction, or end that
    {"n": 4, "do": "ping"}

An answer is `{"n": 1, "done": true}` or `{"n": 1, "error": "…", "code": "…"}`. A worker also sends
`{"evicted": [7, …]}` unprompted: these ids left its memory, and stay mapped while a process holds
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Code = Literal["unavailable", "unusable", "full", "pinned"]
# Method of vLLM's workers for commands through the engine (`api/engine_vllm/worker_rpc.py`).
WORKER_METHOD = "bmt_mask_command"


class WorkerError(Exception):
    """A worker could not carry out a command; the message names the reason."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code: Code = code


# A message is a few hundred bytes; a longer line does not come from this server.
MAX_LINE = 1 << 16


def socket_path(folder: str | Path, rank: int) -> Path:
    """Path of a worker's socket. rank: over all data-parallel engines."""
    return Path(folder) / f"w{rank}.sock"


def encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Parse one message. Raises ValueError for anything but one JSON object."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"not an object: {line[:80]!r}")
    return value
