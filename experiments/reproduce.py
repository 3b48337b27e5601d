"""`python -m experiments.reproduce`: run the comparisons of recipes/queue.yaml that have no result.

Runs are kept as they finish. An interrupted run resumes from its last checkpoint. Several
processes may work on one queue: each takes other runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bmt_trainer.comparison import queue
from bmt_trainer.console import Display
from bmt_trainer.process import keep_freed_memory

from benchmarks.harness.environment import ROOT, demo_model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.add_argument("--next", action="store_true", help="stop after one run")
    parser.add_argument("--queue", type=Path, default=ROOT / "recipes" / "queue.yaml")
    options = parser.parse_args()
    keep_freed_memory()
    demo_model()  # the queue's model, made at its first use
    display = Display()
    plans = queue.read(options.queue, ROOT, display)
    while (cell := queue.run_next(plans, display)) is not None:
        print(f"kept {cell.file}")
        if options.next:
            return
    print("nothing left to run in this queue")


if __name__ == "__main__":
    main()
