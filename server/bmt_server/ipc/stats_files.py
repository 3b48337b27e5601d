"""How figures of other processes reach `/metrics`: one small file each, replaced atomically.

A file instead of a call into the engine: reading it costs the scrape nothing, never waits for a
running step, and still answers when the engine hangs.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from bmt_server.ipc.affinity import free_affinity

# vLLM's own logger: what these processes say appears in the server's log.
_logger = logging.getLogger("vllm.bmt_server")

_INTERVAL_S = 0.2

Figures = TypeVar("Figures")


def write(path: Path, figures: Any) -> None:
    """Replace the file; readers see the old figures or the new ones, never a part."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(figures)))
    os.replace(temporary, path)


def read_all(folder: str | Path, pattern: str, kind: type[Figures]) -> list[Figures]:
    """All processes' latest figures. Unreadable files are skipped: a process may be ending."""
    found = []
    for path in sorted(Path(folder).glob(pattern)) if folder else []:
        try:
            found.append(kind(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return found


class Writer:
    """Writes figures when they changed, off the step's path.

    figures: a dataclass, asked for at each writing, in a thread of the writer's.
    """

    def __init__(self, path: Path, figures: Callable[[], Any]) -> None:
        self._path, self._figures = path, figures
        self._dirty = threading.Event()
        self._dirty.set()
        # Called after each change; cheap.
        self.changed = self._dirty.set
        threading.Thread(target=self._run, name="bmt-stats", daemon=True).start()

    def _run(self) -> None:
        free_affinity()
        pause = threading.Event()
        while True:
            self._dirty.wait()
            self._dirty.clear()
            try:
                write(self._path, self._figures())
            except OSError as error:
                # The folder is gone when the server is; figures are not worth a process.
                _logger.warning("Figures are no longer written to %s: %s", self._path, error)
                return
            pause.wait(_INTERVAL_S)
