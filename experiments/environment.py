"""GRPO in an environment of several turns: mean reward of held-out prompts before and after."""

from __future__ import annotations

from benchmarks.harness.environment import WORK
from experiments import codes
from experiments.record import Figure, keep
from experiments.runs import run_recipe

COMMAND = "make paper-environment"


def train() -> None:
    """Codes that a function must be asked for; rewards of greedy rollouts under base and mask."""
    rows = WORK / "paper" / "codes.jsonl"
    codes.write(rows, 0)
    ran = run_recipe(
        "grpo-environment",
        dataset=str(rows),
        environment=f"{codes.__file__}:Codes",
        reward=f"{codes.__file__}:used",
    )
    figures = []
    for name, when in (("base", "before"), ("init", "start"), ("mask", "after")):
        score = ran.scores[name]
        low, high = score["mean_interval95"]
        print(f"{name:5} {score['mean']:.3f} [{low:.3f}, {high:.3f}] of {score['total']} rollouts")
        figures.append(
            Figure(
                id=f"environment_reward_{when}",
                value=score["mean"],
                interval=(low, high),
                n=score["total"],
                command=COMMAND,
            )
        )
    keep(figures)
    print(f"{ran.mask.zeros:,} zeros, {ran.seconds / 60:.1f} minutes")


EXPERIMENTS = {"environment": train}
