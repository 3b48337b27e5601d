"""Warnings of a run that does not learn, while it can still be stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from bmt_trainer.errors import OutputError
from bmt_trainer.evaluation.formulas import overruns

#: The metric of a step with completions that the math grader could not finish: their number, or
#: less, for TRL averages it over the processes and batches of the step that had any.
OVERRUN = "overrun"
#: Steps in a row that a warning is based on; all of them, in a shorter run.
WINDOW = 5
# Share of cut-off answers from which a warning is given.
_CLIPPED = 0.5
# Equal validations after which a warning is given during training.
_EQUAL_VALIDATIONS = 3


@dataclass(frozen=True)
class Limits:
    """Settings of a run that its warnings name."""

    completions: int
    max_new_tokens: int
    regularized: bool


class Watch(TrainerCallback):
    """Warns once of each cause that keeps a mask from learning, by TRL's logs of GRPO's steps.

    say: prints a line; keep: gets the warnings so far; before: those of an interrupted run.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        say: Callable[[str], None],
        keep: Callable[[Mapping[str, str]], None],
        before: Mapping[str, str],
    ) -> None:
        self._limits, self._say, self._keep = limits, say, keep
        self._warned = dict(before)

    @property
    def warnings(self) -> list[str]:
        """The warnings so far, in the order in which they came."""
        return list(self._warned.values())

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = [entry for entry in state.log_history if "frac_reward_zero_std" in entry]
        window = min(WINDOW, state.max_steps)
        if len(steps) < window:
            return
        for cause, text in found(steps[-window:], self._limits).items():
            if cause not in self._warned:
                self._warned[cause] = text
                self._say(f"warning: {text}")
                try:
                    self._keep(self._warned)
                except OutputError:  # the next checkpoint writes them
                    continue


def found(steps: Sequence[Mapping[str, float]], limits: Limits) -> dict[str, str]:
    """Causes in the logs of consecutive steps that keep a run from learning, and what to do."""
    first, last = int(steps[0]["step"]), int(steps[-1]["step"])
    span = f"steps {first} to {last}" if first < last else f"step {first}"
    clipped = sum(step["completions/clipped_ratio"] for step in steps) / len(steps)
    # Steps of a build before this one have them as zeros.
    closed = [int(step.get("closed_gates", step.get("zeros", 0))) for step in steps]
    rewards = [step["reward"] for step in steps if not math.isnan(step["reward"])]
    causes = {}
    if overrun := sum(step.get(OVERRUN, 0) for step in steps):
        least = overruns.described(math.ceil(overrun))
        causes["overrun"] = f"{span}: of the answers at least {least}"
    cut = clipped >= _CLIPPED
    if cut:
        causes["clipped"] = (
            f"{span}: {clipped:.0%} of the answers were cut off at max_new_tokens "
            f"{limits.max_new_tokens}; raise it, or ask for shorter answers"
        )
    if not rewards:
        causes["inapplicable"] = (
            f"{span}: no reward applied to any answer (None for all); nothing is learned"
        )
        return causes
    if all(step["frac_reward_zero_std"] == 1 for step in steps):
        mean = sum(rewards) / len(rewards)
        fix = "raise max_new_tokens" if cut else "check the reward on answers of the base"
        causes["flat"] = (
            f"{span}: no group of {limits.completions} answers had different rewards (mean "
            f"{mean:.4g}; {clipped:.0%} cut off), so the rewards teach nothing; {fix}, or take "
            "prompts of another difficulty, more completions or a higher temperature"
        )
        if limits.regularized and closed[0] != closed[-1]:
            causes["regularizer"] = (
                f"{span}: the mask moves by the regularizer alone ({closed[0]:,} to {closed[-1]:,} "
                "closed gates) while the rewards are flat; stop, or set reg_lambda 0"
            )
    if len(set(closed)) == 1 and len(steps) > 1:
        causes["still"] = (
            f"{span}: the mask does not move ({closed[0]:,} closed gates at each step); raise "
            "learning_rate, or check the rewards"
        )
    return causes


def equal_validations(means: Sequence[float], *, final: bool) -> str | None:
    """A warning if all validations have one mean reward; None if not, or if there are few yet.

    final: the run is over, so two are enough.
    """
    if len(set(means)) != 1 or len(means) < (2 if final else _EQUAL_VALIDATIONS):
        return None
    return (
        f"all {len(means)} validations have the same mean reward, {means[0]:.4g}, so they "
        "choose no mask: the last is written; use a reward that differs between answers, more "
        "validation examples or more steps"
    )
