"""Signals that end a run: it writes a checkpoint first if it is training. Imports no torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

#: Ctrl-C, Kubernetes and SLURM, and SLURM's `--signal=USR1@60`, which comes ahead of the end.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the run."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The exit code of a program that a signal ended, by the shell's convention."""
        return 128 + self.signum


class Interruption:
    """A signal's effect: at once, or after what is deferred; a second one ends the process.

    Deferred is what must not be left half done: the optimizer's step with all that belongs to it,
    and the writing of a checkpoint.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._signum: int | None = None

    @contextmanager
    def handled(self) -> Iterator[Interruption]:
        """Handle `SIGNALS` in the block, in the main thread; a signal that is ignored stays so."""
        before = {s: signal.getsignal(s) for s in SIGNALS}
        ours = [s for s, handler in before.items() if handler is not signal.SIG_IGN]
        for signum in ours:
            signal.signal(signum, self._handle)
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)
            for signum in ours:
                signal.signal(signum, before[signum])

    def _handle(self, signum: int, _frame: Any) -> None:
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        if not self._deferring:
            raise Interrupted(signum)
        # Not `print`: a handler may run in the middle of one.
        name = signal.Signals(signum).name
        os.write(2, f"bmt-train: {name}: ends after this step; again to end at once\n".encode())

    def defer(self) -> None:
        """Let signals wait for `allow`."""
        self._deferring = True

    @property
    def waiting(self) -> int:
        """The number of the signal that waits, 0 for none."""
        return self._signum or 0

    def end(self, signum: int) -> None:
        """End this process as `signum` does, which another process of the run has received."""
        self._deferring, self._signum = False, signum
        raise Interrupted(signum)

    def allow(self) -> None:
        """Let signals take effect at once. Raises Interrupted for one that waited."""
        self._deferring = False
        if self._signum is not None:
            raise Interrupted(self._signum)


# A signal is the process's: no caller between the program and the training knows of it.
_CURRENT: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


def current() -> Interruption:
    """The one whose signals the program handles; outside of a program, one without signals."""
    return _CURRENT.get() or Interruption()
