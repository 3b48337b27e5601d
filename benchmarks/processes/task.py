"""Runs one measurement in a fresh process: `measure(job)` of a module of `benchmarks.suites`.

python -m benchmarks.processes.task MODULE JOB_JSON FD
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes.child import Child

TIMEOUT_S = 900


def run(module: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`measure(job)` of `benchmarks.suites.MODULE` in a process of its own. Raises ChildError."""
    child = Child(
        module, "benchmarks.processes.task", [module, json.dumps(job)], folder / f"{module}.log"
    )
    try:
        return child.answer(TIMEOUT_S)
    finally:
        child.stop()


def main() -> None:
    module, job, fd = sys.argv[1:]
    measure = importlib.import_module(f"benchmarks.suites.{module}").measure
    try:
        answer = measure(json.loads(job))
    except Exception as error:
        import traceback

        traceback.print_exc()  # into the log, whose end the parent shows
        answer = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(int(fd), "w") as out:
        out.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
