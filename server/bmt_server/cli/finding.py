"""One line of what `bmt-server doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what was found. fix: action to take if the verdict is not ok."""

    what: str
    verdict: Verdict
    value: str
    fix: str = ""
