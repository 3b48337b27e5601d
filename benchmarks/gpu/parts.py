"""The parts of `python -m benchmarks.gpu`: a process each, with a time limit and kept figures."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.environment import ROOT, engine_environment

# Receives each figure as soon as it is known: a name and a value that JSON can hold.
Keep = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A run: out: its folder; model: a checkpoint folder or Hub id, empty for a random base made in
    `out`; tiny: small shapes, on a CPU too, to see that the command works."""

    out: str
    model: str = ""
    tiny: bool = False

    @property
    def base(self) -> str:
        """The checkpoint that engines load."""
        return self.model or str(Path(self.out) / "base")


@dataclass(frozen=True, slots=True)
class Part:
    """name; place: "module:function" of `measure(job, keep)`; limit_s: seconds it may take, and
    those that parts before it left; needs: parts without which it cannot run."""

    name: str
    place: str
    limit_s: float
    needs: tuple[str, ...] = ("device",)


PARTS = (
    Part("device", "benchmarks.gpu.device:check", 15, ()),
    Part("base", "benchmarks.gpu.base:make", 60),
    Part("bare", "benchmarks.gpu.engines:bare", 85, ("device", "base")),
    Part("masks", "benchmarks.gpu.engines:masks", 105, ("device", "base")),
    Part("check", "benchmarks.gpu.kernels:check", 35),
    Part("kernels", "benchmarks.gpu.kernels:sweep", 50),
    Part("lora", "benchmarks.gpu.kernels:lora", 35),
    Part("host", "benchmarks.gpu.kernels:host", 10),
    Part("step", "benchmarks.gpu.training:steps", 80),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a part: seconds it took, and the end of its log unless it is done."""

    name: str
    end: Literal["done", "failed", "out of time", "not run"]
    seconds: float
    log: str = ""


def figures(out: Path, name: str) -> dict[str, Any]:
    """Figures that a part kept, whether or not it came to its end."""
    path = out / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found: dict[str, Any] = {}
    for line in lines:
        try:
            found.update(json.loads(line))
        except json.JSONDecodeError:  # the part was ended while it wrote its last line
            continue
    return found


def run(part: Part, job: Job, environment: dict[str, str]) -> Outcome:
    """Run a part in a process of its own, and end it and all that it started at its limit.

    environment: variables beside those of all engines.
    """
    out = Path(job.out)
    (out / f"{part.name}.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.parts", part.name, part.place]
    start = time.monotonic()
    with (out / f"{part.name}.log").open("wb") as log:
        child = subprocess.Popen(
            [*command, json.dumps(asdict(job))],
            cwd=ROOT,
            env=engine_environment() | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end: Literal["done", "failed", "out of time"] = "out of time"
        try:
            end = "done" if child.wait(part.limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            pass
        finally:
            # What it started may live on: an engine's processes hold the GPU's memory.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    text = (out / f"{part.name}.log").read_text(errors="replace")
    seconds = round(time.monotonic() - start, 1)
    return Outcome(part.name, end, seconds, "" if end == "done" else text[-1500:])


def main() -> int:
    name, place, job = sys.argv[1], sys.argv[2], Job(**json.loads(sys.argv[3]))
    module, function = place.split(":")
    with (Path(job.out) / f"{name}.jsonl").open("a") as file:

        def keep(key: str, value: Any) -> None:
            file.write(json.dumps({key: value}) + "\n")
            file.flush()
            print(key, value, flush=True)

        try:
            getattr(importlib.import_module(module), function)(job, keep)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    # Imported under its real name by the parts, whose classes must be these.
    from benchmarks.gpu import parts

    sys.exit(parts.main())
