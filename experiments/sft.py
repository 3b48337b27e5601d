"""SFT runs from recipes."""

from __future__ import annotations

from experiments.runs import run_recipe, tell


def lean() -> None:
    """Sorting numbers, the demo's task: are the deletions that were learnt enough?"""
    tell(run_recipe("sft-sort"), "_sft", "make paper-lean-sft")
