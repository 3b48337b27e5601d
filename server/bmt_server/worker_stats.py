"""How a worker's figures reach `/metrics`: one small file per worker, replaced atomically.

A file instead of a call into the engine: reading it costs the scrape nothing, never waits for a
running step, and still answers when the engine hangs.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Each name is one value in the router's gauge; thousands would be a file of 100 kB five times a
# second.
MAX_NAMED = 64


@dataclass(slots=True)
class WorkerStats:
    """Counters and gauges of one worker process since its start.

    Times are seconds, sizes bytes; `steps_*` count forward passes by how their masks were
    applied. `resident` lists internal adapter names (`name@digest12`) of at most MAX_NAMED
    masks, those that were used last, most recent last.
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
    maps: int = 0
    map_seconds: float = 0.0
    evictions: int = 0
    resident: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace this worker's file; readers see the old one or the new one, never a part."""
        path = folder / f"worker-{self.pid}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self)))
        os.replace(temporary, path)


def read_all(folder: str | Path) -> list[WorkerStats]:
    """Every worker's latest figures. Unreadable files are skipped: a worker may be ending."""
    found = []
    for path in sorted(Path(folder).glob("worker-*.json")) if folder else []:
        try:
            found.append(WorkerStats(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return found
