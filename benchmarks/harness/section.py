"""Sections of a part: their context and their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import WORK, demo_model
from benchmarks.harness.profiles import Scale
from benchmarks.harness.resume import Journal
from benchmarks.report.results import Findings


@dataclass
class Context:
    """One section's run: how much to measure, where results of finished steps are, and a voice.

    given_model: a checkpoint folder instead of the demo's model.
    """

    part: str
    section: str
    scale: Scale
    journal: Journal
    given_model: Path | None
    say: Callable[[str], None]

    @cached_property
    def model(self) -> Path:
        """Folder of the checkpoint that is served."""
        return self.given_model or demo_model()

    @property
    def command(self) -> str:
        """The command that reproduces the figures of this section."""
        return f'make bench-{self.part} BENCH="--only {self.section}"'

    @property
    def work(self) -> Path:
        """Scratch of this section: logs and what its engines are given."""
        path = WORK / self.part / self.section
        path.mkdir(parents=True, exist_ok=True)
        return path

    def step(self, key: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """Run one step, or take its result of an interrupted run (see `Journal.step`)."""
        return self.journal.step(key, measure, *arguments)


Section = Callable[[Context], Findings]
