"""One line of what `bmt-server doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and its result. fix: action to take if the verdict is not ok."""

    what: str
    verdict: Verdict
    value: str
    fix: str = ""
