"""`python -m experiments NAME`: run one experiment and keep its figures and plot."""

from __future__ import annotations

import argparse

from bmt_trainer.process import keep_freed_memory

from experiments import comparisons, environment, grpo, live, sdft, sft, tool_calls
from experiments.costs import head_cost, label_cost, prompt_cost, step_cost

EXPERIMENTS = {
    **grpo.EXPERIMENTS,
    **sdft.EXPERIMENTS,
    **comparisons.EXPERIMENTS,
    **environment.EXPERIMENTS,
    **tool_calls.EXPERIMENTS,
    "lean-sft": sft.lean,
    "head": head_cost.compare,
    "labels": label_cost.compare,
    "live": live.differences,
    "prompts": prompt_cost.compare,
    "steps": step_cost.compare,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    options = parser.parse_args()
    keep_freed_memory()
    EXPERIMENTS[options.name]()


if __name__ == "__main__":
    main()
