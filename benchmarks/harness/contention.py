"""Contention: CPU time that other processes took during a measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
# vLLM's workers keep polling for a second after their last step (shm_broadcast.py,
# SpinCondition), which takes a core from whatever is measured next.
_SPIN_S = 1.3


def rest() -> None:
    """Wait until engines that ran before have stopped polling for work."""
    time.sleep(_SPIN_S)


class Contention:
    """Measures from its making to `share`: CPU time of processes that this one did not start."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy, self._own = busy_seconds(), own_seconds()

    def share(self) -> float:
        """Cores that others kept busy on average, since this was made; at least 0."""
        elapsed = time.monotonic() - self._start
        others = (busy_seconds() - self._busy) - (own_seconds() - self._own)
        return max(0.0, others / elapsed) if elapsed > 0 else 0.0


def busy_seconds() -> float:
    """CPU seconds of all processes since boot, time stolen by a hypervisor included."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICK


def own_seconds(root: int | None = None) -> float:
    """CPU seconds of a process (default: this one), all its descendants, and those that ended."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold spaces and parentheses.
            rest = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        pid = int(path.parent.name)
        parents[pid] = int(rest[1])
        spent[pid] = sum(int(x) for x in rest[11:15]) / _TICK
    root = root or os.getpid()
    total = 0.0
    for pid in spent:
        ancestor = pid
        while ancestor not in (root, 0, 1):
            ancestor = parents.get(ancestor, 0)
        if ancestor == root:
            total += spent[pid]
    return total
