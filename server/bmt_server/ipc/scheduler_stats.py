"""Figures of `scatter` mode's scheduler, one file for each engine core. See `stats_file.py`."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from pathlib import Path

from bmt_server.ipc import stats_files

# Upper bounds of the classes that waits are counted in, seconds.
WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class TurnStats:
    """Counters and gauges of one scheduler since its start. Times are seconds.

    A turn is a run of steps of one mask. The wait for it is the time from when a request of the
    mask could run, or from the mask's last step, to the turn's first step. `waits` are counts by
    WAIT_BUCKETS, with one more for what is longer than all of them.
    """

    pid: int = 0
    engine: int = 0
    max_wait_s: float = 0.0
    guarantee_s: float = 0.0  # the bound that holds for the masks present: max_wait_s or more
    masks: int = 0  # that have requests which can run
    turns: int = 0
    turn_steps: int = 0
    turn_seconds: float = 0.0
    longest_wait_s: float = 0.0
    waits_over_bound: int = 0
    wait_seconds: float = 0.0
    waits: list[int] = field(default_factory=lambda: [0] * (len(WAIT_BUCKETS) + 1))

    def waited(self, seconds: float) -> None:
        """A mask's turn began after it had waited so long."""
        self.waits[bisect.bisect_left(WAIT_BUCKETS, seconds)] += 1
        self.wait_seconds += seconds
        self.longest_wait_s = max(self.longest_wait_s, seconds)
        self.waits_over_bound += seconds > self.max_wait_s


def path_of(folder: str | Path, pid: int) -> Path:
    return Path(folder) / f"turns-{pid}.json"


def read_all(folder: str | Path) -> list[TurnStats]:
    """Every scheduler's latest figures; none but in mode `scatter`."""
    return stats_files.read_all(folder, "turns-*.json", TurnStats)
