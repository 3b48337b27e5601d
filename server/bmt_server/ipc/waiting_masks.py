"""Masks that wait for the engine, as one API process heard last. See `stats_file.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bmt_server.ipc import stats_files


@dataclass(frozen=True, slots=True)
class Waiting:
    """Internal names of masks whose requests wait, and when that was, in seconds since 1970."""

    at: float = 0.0
    names: list[str] = field(default_factory=list)


def path_of(folder: str | Path, pid: int) -> Path:
    return Path(folder) / f"waiting-{pid}.json"


def latest(folder: str | Path) -> list[str]:
    """What any process of this server heard last: the engine tells one of them at each step."""
    told = stats_files.read_all(folder, "waiting-*.json", Waiting)
    return max(told, key=lambda w: w.at, default=Waiting()).names
