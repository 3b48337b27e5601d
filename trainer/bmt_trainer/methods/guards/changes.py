"""Changes of code that a resumed run may go on with, if its user says so: a mended reward."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

#: Settings that name Python code.
CODE = ("reward", "grader", "environment", "tools")
#: The note, and the entry of a mask's metadata, with the changes of a run.
CHANGES = "changes"
#: Names of held-out scores, in the order of metadata.
SCORES = ("base", "teacher", "init", "last", "mask", "full", "lean")


def fix_of(changed: Collection[str]) -> str:
    """The way to go on after a change of code alone, for the text of an error; else nothing."""
    if set(changed) <= set(CODE):
        return "go on with the new by --accept-changes, "
    return ""


def accepted(notes: Mapping[str, Any], changed: Collection[str], step: int) -> dict[str, Any]:
    """A run's notes once it goes on after `step` steps, the changed settings in them.

    Scores by the code before are left out: they compare with none by the new one. Losses of
    validations are no code's.
    """
    kept = {name: value for name, value in notes.items() if name not in (*SCORES, "warnings")}
    if "validation" in kept:
        kept["validation"] = [v for v in kept["validation"] if "mean" not in v]
    if step:  # a run that starts over has nothing of the code before
        entry = {"changed": sorted(changed), "after_step": step}
        kept[CHANGES] = [*kept.get(CHANGES, []), entry]
    return kept
