"""Figures of one worker, in one file each. See `stats_file.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bmt_server.ipc import stats_files

# Why a step of mode `auto` runs as it does: the mask is in place; it owns the steps and is still
# paying for its switch; the step mixes masks or a mask and the base; the step is all base.
Reason = Literal["in_place", "paying", "mixed", "base"]

# Each name is one value in the router's gauge; thousands would be a file of 100 kB five times a
# second.
MAX_NAMED = 64


@dataclass(slots=True)
class WorkerStats:
    """Counters and gauges of one worker process since its start.

    Times are seconds, sizes bytes; `steps_*` count forward passes by how their masks were
    applied. `resident` lists internal adapter names (`name@digest12`) of at most MAX_NAMED
    masks, those that were used last, most recent last.

    `in_weights` is the digest, 12 digits, of the mask in the live weights, empty for the base. In
    mode `auto`, `reason` says why the last step ran as it did (`worker/switching.py`),
    `switch_paid` how much of a switch's price the present run of one mask has paid, and
    `steps_paying` counts those of the corrected steps that one mask owned.
    """

    pid: int = 0
    rank: int = 0
    mode: str = ""
    kernel: str = ""
    resident_masks: int = 0
    resident_bytes: int = 0
    capacity_bytes: int = 0
    switches: int = 0
    switch_seconds: float = 0.0
    steps_in_place: int = 0
    steps_corrected: int = 0
    steps_base: int = 0
    steps_paying: int = 0
    in_weights: str = ""
    reason: Reason = "base"
    switch_paid: float = 0.0
    maps: int = 0
    map_seconds: float = 0.0
    evictions: int = 0
    resident: list[str] = field(default_factory=list)

    @property
    def fits(self) -> int:
        """How many masks of the present average size this worker's memory holds."""
        if not self.resident_masks or not self.resident_bytes:
            return MAX_NAMED
        return max(1, self.capacity_bytes * self.resident_masks // self.resident_bytes)


def path_of(folder: str | Path, pid: int) -> Path:
    return Path(folder) / f"worker-{pid}.json"


def read_all(folder: str | Path) -> list[WorkerStats]:
    """Every worker's latest figures."""
    return stats_files.read_all(folder, "worker-*.json", WorkerStats)
