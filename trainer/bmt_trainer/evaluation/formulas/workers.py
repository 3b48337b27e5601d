"""Comparisons of formulas in processes of their own, within bounds of time and memory, in any
thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bmt_trainer.errors import LibraryError
from bmt_trainer.evaluation.formulas.overruns import CPU_SECONDS, MEMORY_BYTES, Overrun
from bmt_trainer.evaluation.formulas.worker import READY

# Seconds by the clock, for a process that does not run: one that swaps, or that is stopped.
_LONGEST_SECONDS = 120.0
# Seconds after which a wait looks for a signal, see `bmt_trainer.waiting`.
_LOOK_SECONDS = 0.25
_ROOT = Path(__file__).resolve().parents[3]
# Without the working folder, in which a file may have the name of a module that is imported.
_PROGRAM = (
    "import sys; sys.path.append({root!r}); "
    "from bmt_trainer.evaluation.formulas.worker import serve; serve({cpu!r}, {memory!r})"
)
# Outcomes of the last comparisons: the lenient reading asks again what the strict one did.
_KEPT = 1024


class _Worker:
    """A process that compares, with its pipes."""

    def __init__(self, cpu_seconds: float, memory_bytes: int) -> None:
        program = _PROGRAM.format(root=str(_ROOT), cpu=cpu_seconds, memory=memory_bytes)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is the parent's; a new session would have a priority of its own (autogroup).
            process_group=0,
        )
        #: Another comparison has room in its memory.
        self.roomy = True
        said = self._line()
        if said != READY:
            self.close()
            raise LibraryError(
                f"math-verify cannot be used ({said or 'its process ended at its start'}); "
                "install it again: pip install math-verify, or free memory if the system ended it"
            )

    @property
    def alive(self) -> bool:
        """False if something has ended the process."""
        return self._process.poll() is None

    def compare(self, completion: str, answer: str) -> bool:
        """The outcome. Raises Overrun, after which the process is of no use."""
        assert self._process.stdin is not None
        # It may end while it reads: of a text beyond its memory.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([completion, answer]).encode() + b"\n")
            self._process.stdin.flush()
        if (said := self._line()) is None:
            raise Overrun
        outcome, self.roomy = said
        return bool(outcome)

    def _line(self) -> Any:
        """The next line of the process; None if it ended, or does not run."""
        assert self._process.stdout is not None
        found, until = b"", time.monotonic() + _LONGEST_SECONDS
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while not found.endswith(b"\n"):
            if time.monotonic() > until:
                return None
            if poll.poll(_LOOK_SECONDS * 1000):
                some = os.read(self._process.stdout.fileno(), 1 << 16)
                if not some:
                    return None
                found += some
        return json.loads(found)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what was not sent yet
            self._process.stdin.close()
        self._process.stdout.close()


@dataclass
class Workers:
    """Processes that compare formulas; as many as comparisons were made at once."""

    cpu_seconds: float = CPU_SECONDS
    memory_bytes: int = MEMORY_BYTES
    _idle: deque[_Worker] = field(default_factory=deque)
    _owner: int = field(default_factory=os.getpid)

    def equal(self, completion: str, answer: str) -> bool:
        """Equality as in `equality`. Raises Overrun, LibraryError."""
        worker = self._taken()
        try:
            outcome = worker.compare(completion, answer)
        except BaseException:  # Ctrl-C too: what it would answer is no other comparison's
            worker.close()
            raise
        if worker.roomy:
            self._idle.append(worker)
        else:
            worker.close()
        return outcome

    def _taken(self) -> _Worker:
        if self._owner != os.getpid():  # a fork has its parent's pipes, which are not its own
            self._idle, self._owner = deque(), os.getpid()
        with contextlib.suppress(IndexError):
            while True:
                if (worker := self._idle.pop()).alive:
                    return worker
                worker.close()
        return _Worker(self.cpu_seconds, self.memory_bytes)


_WORKERS = Workers()


def equal(completion: str, answer: str) -> bool:
    """math-verify finds the completion's last formula equal to the answer. Raises Overrun."""
    if (outcome := _outcome(completion, answer)) is None:
        raise Overrun
    return outcome


@lru_cache(_KEPT)
def _outcome(completion: str, answer: str) -> bool | None:
    """The outcome; None for one that was not reached within the bounds."""
    try:
        return _WORKERS.equal(completion, answer)
    except Overrun:
        return None
