"""Statistics of workers, schedulers and API processes: one JSON file per process in `stats_dir`.

Every scrape of `/metrics` reads the files of all processes. A file, unlike a call into the engine,
costs a read of a few kilobytes, never waits for a running step, and still exists while the engine
hangs. A file is written and read by processes of the same server version.
"""

from __future__ import annotations

import bisect
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from bmt_server.ipc.affinity import reset_affinity

# vLLM's logger, so that messages of these processes appear in the server's log.
_logger = logging.getLogger("vllm.bmt_server")

_INTERVAL_S = 0.2

# Reason for the way the last step of mode `auto` ran: the mask is in the live weights; one mask
# owns the step and is still paying for its switch; the step mixes masks, or a mask and the base;
# all tokens of the step are the base's.
Reason = Literal["in_place", "paying", "mixed", "base"]

# Each name is one value of the router's gauge. Thousands of names would be a 100 kB file, written
# five times a second.
MAX_NAMED = 64

# Upper bounds of the wait histogram's buckets, seconds.
WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _StatsFile:
    """Base of the statistics dataclasses: file name, atomic write, tolerant read."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    prefix: ClassVar[str]

    @classmethod
    def path(cls, folder: str | Path, pid: int) -> Path:
        """File of the process with this id."""
        return Path(folder) / f"{cls.prefix}-{pid}.json"

    @classmethod
    def read_all(cls, folder: str | Path) -> list[Self]:
        """Latest statistics of all processes of this kind, sorted by file name.

        Skips unreadable files, because a process may be ending. An empty `folder` has none.
        """
        results = []
        for path in sorted(Path(folder).glob(f"{cls.prefix}-*.json")) if folder else []:
            try:
                results.append(cls(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError):
                continue
        return results

    def write(self, folder: str | Path, pid: int) -> None:
        """Replace the file of process `pid` atomically: readers see the old or the new content.

        Raises OSError.
        """
        path = self.path(folder, pid)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self)))
        os.replace(temporary, path)


@dataclass(slots=True)
class WorkerStats(_StatsFile):
    """Counters and gauges of one worker process since its start.

    Times are seconds, sizes bytes. `steps_*` count forward passes by the way their masks were
    applied. `resident` lists the internal names (`name@digest12`) of at most MAX_NAMED masks, the
    most recently used ones, in the order of their last use.

    `in_weights` is the digest, 12 hex digits, of the mask in the live weights, empty for the base.
    In mode `auto`, `reason` explains the last step (`worker/switch_policy.py`), `switch_paid` is
    the share of a switch's cost that the current run of one mask has paid, and `steps_paying`
    counts the corrected steps that one mask owned. `base_error` is the reason why masks are refused
    (`worker/base_weights.py`), empty if they are not.
    """

    prefix: ClassVar[str] = "worker"

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
    base_error: str = ""
    resident: list[str] = field(default_factory=list)

    @property
    def base_replaced(self) -> int:
        """1 while this worker refuses masks."""
        return int(bool(self.base_error))

    @property
    def fits(self) -> int:
        """Number of masks of the current average size that fit into this worker's memory."""
        if not self.resident_masks or not self.resident_bytes:
            return MAX_NAMED
        return max(1, self.capacity_bytes * self.resident_masks // self.resident_bytes)


@dataclass(slots=True)
class TurnStats(_StatsFile):
    """Counters and gauges of one engine core's scheduler in mode `scatter`. Times are seconds.

    A turn is a run of steps of one mask. The wait for a turn starts when a request of the mask can
    run, or with the mask's last step, and ends with the turn's first step. `waits` counts waits by
    WAIT_BUCKETS; its last element counts waits longer than all of the bounds.
    """

    prefix: ClassVar[str] = "turns"

    pid: int = 0
    engine: int = 0
    max_wait_s: float = 0.0
    guarantee_s: float = 0.0  # bound that holds for the masks present: max_wait_s or more
    masks: int = 0  # masks with requests that can run
    turns: int = 0
    turn_steps: int = 0
    turn_seconds: float = 0.0
    longest_wait_s: float = 0.0
    waits_over_bound: int = 0
    wait_seconds: float = 0.0
    waits: list[int] = field(default_factory=lambda: [0] * (len(WAIT_BUCKETS) + 1))

    def waited(self, seconds: float) -> None:
        """Count one wait that ended with a turn."""
        self.waits[bisect.bisect_left(WAIT_BUCKETS, seconds)] += 1
        self.wait_seconds += seconds
        self.longest_wait_s = max(self.longest_wait_s, seconds)
        self.waits_over_bound += seconds > self.max_wait_s


@dataclass(frozen=True, slots=True)
class WaitingMasks(_StatsFile):
    """Internal names of masks with waiting requests, as of `at` (seconds since 1970)."""

    prefix: ClassVar[str] = "waiting"

    at: float = 0.0
    names: list[str] = field(default_factory=list)

    @classmethod
    def latest(cls, folder: str | Path) -> list[str]:
        """Most recent names from any API process: the engine reports each step to one of them."""
        return max(cls.read_all(folder), key=lambda w: w.at, default=cls()).names


@dataclass(slots=True)
class TrainingStats(_StatsFile):
    """State of the worker of `--train`: 1 in `up` while it runs, and how often it was started."""

    prefix: ClassVar[str] = "training"

    up: int = 0
    starts: int = 0


class StatsWriter:
    """Background thread that rewrites a process's file after changes, at most every 0.2 s.

    stats: returns the dataclass to write; called in the writer's thread.
    """

    def __init__(self, folder: str | Path, pid: int, stats: Callable[[], _StatsFile]) -> None:
        self._folder, self._pid, self._stats = folder, pid, stats
        self._writing = threading.Lock()
        self._dirty = threading.Event()
        self._dirty.set()
        threading.Thread(target=self._run, name="bmt-stats", daemon=True).start()

    def changed(self) -> None:
        """Request a rewrite. Cheap enough for every step."""
        self._dirty.set()

    def write(self) -> None:
        """Rewrite the file before this call returns; any thread. Raises OSError.

        One thread at a time collects and writes, so the file never goes back to an older state.
        """
        with self._writing:
            self._stats().write(self._folder, self._pid)

    def _run(self) -> None:
        reset_affinity()
        pause = threading.Event()
        while True:
            self._dirty.wait()
            self._dirty.clear()
            try:
                self.write()
            except OSError as error:
                # The folder disappears with the server; missing statistics must not end a process.
                _logger.warning("Statistics are no longer written to %s: %s", self._folder, error)
                return
            pause.wait(_INTERVAL_S)
