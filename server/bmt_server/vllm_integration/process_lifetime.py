"""Lifetime of the server's processes: none outlives the one that started it.

vLLM's engine and workers are children of the API process, or of the launcher of several API
processes. vLLM ends them in an orderly stop; if their parent is killed, its engine waits for
requests for ever. Here every such process watches its parent and kills itself when that is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from functools import cache

# Set to the process id of the process that exported the settings.
ROOT_ENV = "BMT_SERVER_ROOT"
_POLL_S = 0.5
# Signals that would end a process and that a server has no use for. SIGHUP comes when a terminal
# is closed.
IGNORED = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


def ignore_signals() -> None:
    """Ignore these signals in this process and in all that it starts."""
    for one in IGNORED:
        signal.signal(one, signal.SIG_IGN)


def mark_root() -> None:
    """Exempt this process from `end_with_parent`."""
    os.environ[ROOT_ENV] = str(os.getpid())


@cache
def end_with_parent() -> None:
    """Kill this process within a second of its parent's end, if multiprocessing started it.

    It also leaves the terminal's foreground group, so that Ctrl-C reaches the API process alone,
    which ends its requests first.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or os.environ.get(ROOT_ENV) == str(os.getpid()):
        return
    if os.getpid() != os.getsid(0):
        os.setsid()
    threading.Thread(target=_watch, args=(parent.pid,), name="bmt-parent", daemon=True).start()


def _watch(parent: int) -> None:
    # Not PR_SET_PDEATHSIG, which comes when the thread that started this process ends.
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)
