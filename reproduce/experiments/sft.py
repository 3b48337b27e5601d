"""SFT runs of recipes."""

from __future__ import annotations

from reproduce.experiments.runs import report, run_recipe


def lean() -> None:
    """Sorting numbers, the demo's task: the lean mask against the full one."""
    report(run_recipe("sft-sort"), "_sft", "make reproduce NAME=sft-lean")
