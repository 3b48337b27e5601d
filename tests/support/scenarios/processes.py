"""Resources of a server's processes: memory, descriptors, threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """Sums over a process and all that it started.

    memory_mib: MiB of their own, without pages of files, which the system drops if it needs room.
    """

    at_s: float
    memory_mib: float
    descriptors: int
    threads: int


def sample(root: int, at_s: float) -> Sample:
    own = descriptors = threads = 0
    for pid in family(root):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue  # it has just ended
        fields = dict(x.split(":", 1) for x in status.splitlines() if ":" in x)
        own += sum(int(fields.get(f, "0 kB").split()[0]) for f in ("RssAnon", "RssShmem"))
        threads += int(fields["Threads"])
    return Sample(at_s, own / 1024, descriptors, threads)


def family(root: int) -> list[int]:
    """A process, its children, theirs, and so on."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left += parents.get(pid, [])
    return found
