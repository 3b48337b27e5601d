"""A server's part that keeps a worker, and a program in the worker's place.

Arguments: `server`, the port of `/readyz` and a folder; or `worker` and the folder, to which it
writes what it was given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bmt_server.training.keys import NoKeys
from bmt_server.training.plan import Plan
from bmt_server.training.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[3]


def command(folder: Path) -> tuple[str, ...]:
    module = "tests.support.children.worker_of_server"
    return (sys.executable, "-m", module, "worker", str(folder))


def plan(port: int, folder: Path, **more: str) -> Plan:
    environment = {"PYTHONPATH": str(ROOT), **more}
    return Plan(command(folder), environment, "127.0.0.1", port)


def session_niceness() -> int | None:
    """That of this process's autogroup; None where the kernel has none."""
    try:
        return int(Path("/proc/self/autogroup").read_text().split()[-1])
    except OSError:
        return None


def worker(folder: Path) -> None:
    own = Path("/proc/self")
    # Of its own, as a training of a worker: what it has, it was given by its parent.
    below = subprocess.run(
        [sys.executable, "-c", "import os; print(os.sched_getscheduler(0), os.nice(0))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    said = {
        "pid": os.getpid(),
        "key": os.environ.get("BMT_API_KEY"),
        "words": (own / "cmdline").read_text(),
        "inherited": [int(word) for word in below],
        "session_niceness": session_niceness(),
        "out_of_memory": int((own / "oom_score_adj").read_text()),
    }
    print("a line of the worker", file=sys.stderr, flush=True)
    part = folder / f".{os.getpid()}"
    part.write_text(json.dumps(said))
    part.rename(folder / f"{os.getpid()}.json")
    time.sleep(600)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker(Path(sys.argv[2]))
    else:
        folder = Path(sys.argv[3])
        with Supervisor(plan(int(sys.argv[2]), folder), NoKeys(), str(folder), print):
            time.sleep(600)
