"""A queue of comparisons: the next run without a result, of several plans in order.

A run is done if its result's file exists, so that an interrupted queue continues, also on another
machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from bmt_trainer.comparison.plan import Cell, Plan
from bmt_trainer.comparison.results import kept
from bmt_trainer.comparison.runner import locked, run_and_keep
from bmt_trainer.console import Display


def run_next(queue: Sequence[Plan], display: Display) -> Cell | None:
    """Run, or resume, the first run without a result, and keep its result.

    Returns None if no run is left but those that other processes work on. Processes that call this
    at the same time take different runs.
    """
    for plan in queue:
        plan.output.mkdir(parents=True, exist_ok=True)
        for cell in plan.cells():
            if kept.result(cell, display.say) is not None:
                continue
            with locked(cell.file, wait=False) as ours:
                # Another process may have finished it since.
                if ours and kept.result(cell) is None:
                    run_and_keep(cell, display)
                    return cell
    return None
