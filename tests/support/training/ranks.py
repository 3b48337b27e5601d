"""Training runs of several processes under FSDP2 on CPUs (gloo), killed and resumed.

The processes come from a fork server: a run starts in a fraction of torchrun's time.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import bmt_core
import yaml

from tests.support.http.ports import free_port
from tests.support.training.forked import start

_RECIPE = Path(__file__).parents[3] / "recipes/fsdp2.yaml"


def fsdp2() -> dict[str, str]:
    """Environment of `accelerate launch` for the recipe, which on a CPU starts one process."""
    recipe = yaml.safe_load(_RECIPE.read_text())
    found = {k.upper(): str(v).lower() for k, v in recipe["fsdp_config"].items()}
    found |= {k: v.upper() for k, v in found.items() if k.endswith(("POLICY", "TYPE"))}
    return {**found, "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}


def environments(ranks: int) -> list[dict[str, str]]:
    """Environments of `accelerate launch` by the recipe, of so many processes on this host."""
    alone = {"OMP_NUM_THREADS": "1"}
    if ranks == 1:
        return [alone]
    common = {**alone, **fsdp2(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@dataclass
class RankedRun:
    """One run of `bmt-train METHOD` in several processes; settings: but for the output."""

    method: str
    settings: Mapping[str, object]
    folder: Path
    ranks: int = 2

    @property
    def output(self) -> Path:
        return self.folder / "m.bmt"

    @property
    def log(self) -> str:
        return "".join(p.read_text() for p in sorted(self.folder.glob("rank-*.txt")))

    def start(self, *more: str) -> list[BaseProcess]:
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = [self.method, "--output", str(self.output), *more]
        for name, value in self.settings.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        logs = [self.folder / f"rank-{rank}.txt" for rank in range(self.ranks)]
        return [
            start(["-m", "bmt_trainer", *arguments], log, log, {**os.environ, **one})
            for log, one in zip(logs, environments(self.ranks), strict=True)
        ]

    def end(self, processes: Sequence[BaseProcess], seconds: float = 200) -> list[int]:
        """Wait for all; their exit codes. Kills what is left after so many seconds."""
        until = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        left = [p for p in processes if p.exitcode is None]
        for process in left:
            process.kill()
            process.join()
        assert not left, f"{len(left)} processes did not end: {self.log[-3000:]}"
        return [p.exitcode or 0 for p in processes]

    def finish(self, *more: str) -> str:
        """Run to the end; the mask's digest."""
        codes = self.end(self.start(*more))
        assert not any(codes), (codes, self.log[-4000:])
        assert not (self.folder / "m.bmt.run").exists()
        return bmt_core.load(self.output).digest

    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints."""
        found = (self.folder / "m.bmt.run").glob("checkpoint-*/manifest.json")
        return sorted(int(p.parent.name.rpartition("-")[2]) for p in found)

    def strike(self, sent: signal.Signals, step: int, *, among: Sequence[int] = ()) -> list[int]:
        """Start, and send a signal once there is a checkpoint of `step` or later; exit codes.

        among: the ranks that get it; by default all.
        """
        processes = self.start()
        while not any(done >= step for done in self.checkpoints()):
            assert all(p.exitcode is None for p in processes), self.log[-4000:]
            time.sleep(0.002)
        for rank in among or range(self.ranks):
            pid = processes[rank].pid
            assert pid is not None
            os.kill(pid, sent)
        codes = self.end(processes)
        assert not self.output.exists(), "the run had ended"
        return codes

    def losses(self) -> list[float]:
        """Each step's loss, by the history."""
        history = json.loads((self.folder / "m.bmt.history.json").read_text())
        return [step["loss"] for step in history["steps"]]
