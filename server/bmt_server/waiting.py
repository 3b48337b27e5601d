"""Masks that wait for the engine, as one API process heard last. See `stats_file.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bmt_server import stats_file


@dataclass(slots=True)
class Waiting:
    """Internal names of masks whose requests wait, and when that was, in seconds since 1970."""

    at: float = 0.0
    names: list[str] = field(default_factory=list)


def tell(folder: str | Path, names: Iterable[str]) -> None:
    """The engine told this process. Raises OSError where the folder is gone."""
    path = Path(folder) / f"waiting-{os.getpid()}.json"
    stats_file.write(path, Waiting(time.time(), list(names)))


def latest(folder: str | Path) -> list[str]:
    """What any process of this server heard last: the engine tells one of them at each step."""
    told = stats_file.read_all(folder, "waiting-*.json", Waiting)
    return max(told, key=lambda w: w.at, default=Waiting()).names
