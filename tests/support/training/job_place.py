"""A real server with files and a registry of its own, and a real worker at its jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.served import Served, Valkey

FLAGS = ("--enforce-eager", "--dtype", "float32")


@contextmanager
def job_place(model: Path, folder: Path, *worker_flags: str, threads: int = 1) -> Iterator[Served]:
    """The server, while a worker with `threads` threads trains what it is given."""
    (folder / "valkey").mkdir()
    store = Valkey(folder / "valkey")
    store.start()
    served = worker = None
    try:
        options = (*FLAGS, "--files", str(folder / "files"))
        served = Served(model, folder, *options, registry=store.url)
        command = [sys.executable, "-m", "bmt_trainer", "worker", "--server", served.url]
        command += ["--model", str(model), "--folder", str(folder / "work"), "--device", "cpu"]
        environment = {**os.environ, "BMT_API_KEY": served.key, "OMP_NUM_THREADS": str(threads)}
        worker = subprocess.Popen([*command, *worker_flags], env=environment)
        yield served
    finally:
        if worker is not None:
            worker.terminate()
            worker.wait(90)
        if served is not None:
            served.stop()
        store.close()
