"""Training runs of `bmt-train` in children that are killed, starved of disk, damaged and resumed.

The children come from a fork server: each starts in milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import bmt_core

from tests.support.training.forked import start

KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "full disk", "cut")
# A log fits; a checkpoint's optimizer does not.
SMALL_FILE = 24_000


@dataclass
class Run:
    """One training run, whatever happens to it; settings: of the method, but for the output."""

    method: str
    settings: dict[str, object]
    folder: Path
    attempts: int = 0
    happened: Counter[str] = field(default_factory=Counter)

    @property
    def output(self) -> Path:
        return self.folder / "m.bmt"

    @property
    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""

    def start(self) -> BaseProcess:
        """Start it, or resume it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = [self.method, "--output", str(self.output)]
        for name, value in self.settings.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        if self.attempts:
            arguments.append("--resume")
        self.attempts += 1
        log, environment = self.folder / "log.txt", {**os.environ, "OMP_NUM_THREADS": "1"}
        return start(["-m", "bmt_trainer", *arguments], log, log, environment)

    def finish(self) -> str:
        """Run to the end; the mask's digest."""
        process = self.start()
        process.join(300)
        assert process.exitcode == 0, self.log[-3000:]
        assert not (self.folder / "m.bmt.run").exists()
        return bmt_core.load(self.output).digest

    def losses(self) -> list[float]:
        """Each step's loss, by the history."""
        history = json.loads((self.folder / "m.bmt.history.json").read_text())
        return [step["loss"] for step in history["steps"]]

    def strike(self, kind: str, after: float, rng: random.Random) -> bool:
        """Start the run and strike after seconds; False if it had ended by then."""
        process = self.start()
        process.join(after)
        if process.exitcode is not None:
            assert process.exitcode == 0, self.log[-3000:]
            return False
        assert process.pid is not None
        if kind == "full disk":
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SMALL_FILE, hard))
            process.join(rng.uniform(0.2, 1.5))
            if process.exitcode is None:
                process.kill()
                process.join()
            assert process.exitcode in (0, 1, -signal.SIGKILL), self.log[-3000:]
        else:
            sent = signal.SIGKILL if kind == "cut" else signal.Signals[kind]
            os.kill(process.pid, sent)
            process.join(60)
            # -number: before the program handled signals, or SIGKILL.
            assert process.exitcode in (0, 128 + sent, -sent, 1 if sent == signal.SIGINT else 0), (
                kind,
                process.exitcode,
                self.log[-3000:],
            )
        if kind == "cut":
            self.cut(rng)
        assert "Traceback" not in self.log, self.log[-3000:]
        self.happened[kind] += 1
        return not self.output.exists()

    def cut(self, rng: random.Random) -> None:
        """Cut a random file of the newest checkpoint at a random byte."""
        found = (self.folder / "m.bmt.run").glob("checkpoint-*")
        newest = max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
        if newest is None or not (files := sorted(p for p in newest.iterdir() if p.is_file())):
            return
        file = rng.choice(files)
        os.truncate(file, rng.randrange(max(1, file.stat().st_size)))
        self.happened["checkpoints damaged"] += 1


def storm(
    method: str, settings: dict[str, object], folder: Path, strikes: int, seed: int
) -> Counter[str]:
    """Strike runs `strikes` times, three times each, and resume them; all end with equal masks.

    Returns what happened, by kind.
    """
    rng, total = random.Random(seed), Counter[str]()
    Run(method, settings, folder / "first").finish()  # the fork server imports
    whole, began = Run(method, settings, folder / "whole"), time.monotonic()
    digest, seconds = whole.finish(), time.monotonic() - began
    losses = whole.losses()
    while (left := strikes - sum(total[k] for k in KINDS)) > 0:
        run = Run(method, settings, folder / f"run-{sum(total.values())}")
        for _ in range(min(3, left)):
            if not run.strike(rng.choice(KINDS), rng.uniform(0.2, seconds), rng):
                break
        if not run.output.exists() or (run.folder / "m.bmt.run").exists():
            assert run.finish() == digest, run.log[-3000:]
        assert bmt_core.load(run.output).digest == digest, run.log[-3000:]
        assert run.losses() == losses
        total += run.happened
        total["runs"] += 1
        total["resumed after step 0"] += run.log.count("resuming at step")
    return total
