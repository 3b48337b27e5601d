"""The memory that a device's processes may take: a GPU's, or the machine's within its limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path("/")


def memory_of(device: torch.device, root: Path = ROOT) -> int | None:
    """Bytes of memory of a GPU of CUDA, or of the machine; None if they are not known.

    Of the machine, at most as much as the control groups of this process allow, as containers set
    it. root: of the file system.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    bounds = list(_limits(root))
    with suppress(ValueError, OSError):
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(bounds, default=None)


def _limits(root: Path) -> Iterator[int]:
    """Limits of this process's control groups and of those that hold them, of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounted, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mounted, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        # In a container the path may be the host's, which is not to be seen there: its own limit
        # stands at the top then.
        for folder in (group, *group.parents):
            try:
                text = (mounted / folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():  # not "max"
                yield int(text)
