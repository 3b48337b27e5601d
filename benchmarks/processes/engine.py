"""Offline engines as processes that take turns: the parent's side of `engine_child`."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.contention import own_seconds
from benchmarks.processes.child import Child

Kind = Literal["bare", "masks", "lora"]

# For a start as for a run: a compiled start takes over a minute on a free machine.
TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """Specification of one engine process: its kind, checkpoint, vLLM options and adapter files."""

    name: str
    kind: Kind
    model: Path
    options: dict[str, Any]
    adapters: Sequence[Path] = ()
    mask_mode: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One call of `generate`: sequences x (prompt_tokens in, new_tokens out).

    adapters: per sequence the index of its adapter, or None; one entry stands for all.
    """

    sequences: int
    prompt_tokens: int
    new_tokens: int
    adapters: tuple[int | None, ...] = (None,)

    def command(self, seed: int) -> dict[str, Any]:
        repeated = self.adapters * (self.sequences // len(self.adapters))
        if len(repeated) != self.sequences:
            raise ValueError(f"{len(self.adapters)} adapters for {self.sequences} sequences")
        return {
            "sequences": self.sequences,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "adapters": repeated,
            "seed": seed,
        }


@dataclass(frozen=True, slots=True)
class Ran:
    """One call of `generate`: seconds by the clock, and CPU seconds of all of its processes."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine. kernel: which mask kernel it said it runs, empty for other engines."""

    child: Child
    kernel: str

    def run(self, work: Work, seed: int) -> Ran:
        """Generate once; after another engine's run, `rest` first. Raises ChildError."""
        before = own_seconds(self.child.pid)
        answer = self.child.ask(work.command(seed), TIMEOUT_S)
        return Ran(float(answer["seconds"]), own_seconds(self.child.pid) - before)


def _launch(spec: EngineSpec, folder: Path) -> Child:
    stats = folder / f"{spec.name}.stats"
    shutil.rmtree(stats, ignore_errors=True)
    stats.mkdir(parents=True)
    config = {
        "kind": spec.kind,
        "model": str(spec.model),
        "options": spec.options,
        "adapters": [str(a) for a in spec.adapters],
        "mask_mode": spec.mask_mode,
        "stats_dir": str(stats),
    }
    log = folder / f"{spec.name}.log"
    return Child(
        f"engine {spec.name}", "benchmarks.processes.engine_child", [json.dumps(config)], log
    )


@contextlib.contextmanager
def engines(specs: Sequence[EngineSpec], folder: Path) -> Iterator[dict[str, Engine]]:
    """Start engines side by side; yields them by name, and ends them however the block ends.

    Raises ChildError where one does not start.
    """
    children: dict[str, Child] = {}
    try:
        for spec in specs:
            children[spec.name] = _launch(spec, folder)
        yield {name: Engine(c, c.answer(TIMEOUT_S)["kernel"]) for name, c in children.items()}
    finally:
        for child in children.values():
            child.stop()
