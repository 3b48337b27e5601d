"""A process that compares formulas within bounds of time and memory. Imports no torch.

It reads a JSON line for each comparison, [completion, answer], and writes one, [outcome, roomy].
The system ends it at a bound, which code in C does not hold off as it does an exception.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys

from bmt_trainer.evaluation.formulas.equality import equal

#: The first line of a process that can compare.
READY = "ready"


def serve(cpu_seconds: float, memory_bytes: int) -> None:
    """Compare until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    # What libraries print is no outcome.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    # Ctrl-C is for the run, which may go on to the end of its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A process begins with the signals that its parent ignores or holds back.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        import math_verify  # noqa: F401
    except Exception as error:  # whatever a broken installation raises
        print(json.dumps(f"{type(error).__name__}: {error}"), file=out, flush=True)
        return
    print(json.dumps(READY), file=out, flush=True)
    for line in sys.stdin:
        # Of the process' own time, so that a busy machine changes no outcome. Its signal, which
        # nothing handles, ends the process.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            outcome = equal(*json.loads(line))
        except MemoryError:
            return
        except Exception:  # a formula that SymPy cannot handle equals nothing
            outcome = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([outcome, _roomy(memory_bytes)]), file=out, flush=True)


def _roomy(memory_bytes: int) -> bool:
    """True if the next comparison has half of the memory at least.

    SymPy keeps what it computed, so that a right answer after long ones could have none.
    """
    try:
        mmap.mmap(-1, memory_bytes // 2).close()
    except OSError:
        return False
    return True
