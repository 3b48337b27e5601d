"""Forms of reward functions, recognized by their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from bmt_trainer.errors import ConfigError

#: Arguments of a reward function in TRL (1.16, trainer/grpo_trainer.py, `_calculate_rewards`).
TRL_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
)
#: Columns that TRL does not pass on, because these arguments replace them.
REPLACED_COLUMNS = ("prompt", "completion", "completion_ids")

_EXPECTED = (
    "a reward takes (completion, answer) and returns a number, or takes any of "
    f"{', '.join(TRL_ARGUMENTS)} and columns by name and returns a list of numbers"
)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Form:
    """The way in which a function is called.

    single: with one completion and its answer; else with a batch, by name: those of `required` and
    `optional` that there are, or everything if it takes `anything`.
    """

    single: bool
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    anything: bool = False

    def missing(self, given: Collection[str]) -> list[str]:
        """Parameters without a default that are not `given`."""
        return [name for name in self.required if name not in given]


def form_of(function: Callable[..., Any], text: str, bound: Collection[str] = ()) -> Form | None:
    """The form of a function; None if it takes no completions, as what makes rewards does.

    text: the reward, for error messages; bound: parameters that options have set. Raises
    ConfigError.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise ConfigError(f"reward {text}: {function!r} shows no signature; {_EXPECTED}") from None
    parameters = [p for p in signature.parameters.values() if p.name not in bound]
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    by_name = any(p.name in TRL_ARGUMENTS for p in parameters)
    named = len(positional) >= 2 and positional[0].name == "completion"
    two = len(needed) == 2 and all(p.kind in _POSITIONAL for p in needed)
    others = [p for p in needed if p not in positional[:2]]
    if not by_name and ((named and not others) or (two and not anything)):
        return Form(single=True)
    if not by_name and not anything:
        if not needed and not any(p.kind in variable for p in parameters):
            return None
        raise ConfigError(f"reward {text}: it takes {signature}; {_EXPECTED}")
    if any(p.kind is p.POSITIONAL_ONLY for p in needed):
        raise ConfigError(f"reward {text}: it takes {signature}, not by name; {_EXPECTED}")
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Form(
        single=False,
        required=tuple(p.name for p in plain if p.default is p.empty),
        optional=tuple(p.name for p in plain if p.default is not p.empty),
        anything=anything,
    )
