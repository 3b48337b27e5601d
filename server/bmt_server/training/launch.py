"""Program that becomes a worker of low priority, which ends with the server that started it.

`python -m bmt_server.training.launch PARENT PROGRAM…`: a program and no function between fork and
exec, where a process with threads may run next to nothing. What it sets, the worker keeps and its
trainings inherit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_NICE = 19
# The system's choice if memory runs out: a training that ends goes on from its last checkpoint.
_FIRST_TO_END = "1000"


def main(words: Sequence[str]) -> None:
    """Become the program `words[1:]`, a child of the process `words[0]`."""
    parent, command = int(words[0]), words[1:]
    yield_to_others()
    # SIGKILL: a worker that took its time to end would keep its jobs' folders from the next one.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        sys.exit(1)
    os.execv(command[0], [*command])


def yield_to_others() -> None:
    """Give this process what is left of processors and memory. What is not allowed stays as it is.

    SCHED_IDLE alone weighs less than nice 19; a system whose policy refuses it has the latter. Both
    hold within a session where the kernel groups tasks by session (sched(7), autogroup), so the
    session has the lowest weight as well: the engine's processes have sessions of their own.
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(str(_NICE))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_END)


if __name__ == "__main__":
    main(sys.argv[1:])
