"""Masks on this machine's GPU, in one command of at most eight minutes.

    python -m benchmarks.gpu                     a random base of an 8B Llama's shapes, made here
    python -m benchmarks.gpu --model ID          a checkpoint folder or Hub id, downloaded first
    python -m benchmarks.gpu --tiny              small shapes on a CPU: to see that it works
    python -m benchmarks.gpu --only masks        some parts; --only may be repeated

Parts are processes with time limits of their own; a part may also take the time that earlier ones
left. A part that fails or runs out of time keeps the figures that it has, and the others run all
the same, but for those that need it. Writes a folder with each part's figures and log, and
`summary.json` with the ratios. The random base (16 GB) stays there for the next run. Without a GPU
nothing is measured, and the command says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import SETUP
from benchmarks.gpu.parts import PARTS, Job, Outcome, Part, figures, run
from benchmarks.gpu.summary import line, report, summary
from benchmarks.harness.environment import WORK, provenance


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; exit code 1 if one did not come to its end."""
    options = _parse(arguments)
    if not torch.cuda.is_available() and not options.tiny:
        sys.exit(f"gpu: {_no_device()}, so nothing was measured; try --tiny")
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    job = Job(str(out), options.model, options.tiny)
    outcomes: list[Outcome] = []
    left = 0.0
    for part in chosen(options.only):
        limit, downloads = _limit(part, job), part.name == "base" and bool(job.model)
        outcome = _run(part, job, limit + left, {o.name: o.end for o in outcomes})
        outcomes.append(outcome)
        left = left if downloads else max(0.0, left + limit - outcome.seconds)
        print(line(asdict(outcome)), flush=True)
        _write(out, job, outcomes)
    found = _write(out, job, outcomes)
    print(report(found))
    print(f"{out}/summary.json")
    return 0 if all(o.end == "done" for o in outcomes) else 1


def _no_device() -> str:
    """Reason why torch sees no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build without CUDA ({SETUP} installs the other)"
    return "torch finds no CUDA device (nvidia-smi shows driver and devices)"


def chosen(only: Sequence[str]) -> list[Part]:
    """The parts to run, in order: all, or those of `only` with the parts that they need."""
    named = {need for part in PARTS if part.name in only for need in (part.name, *part.needs)}
    return [part for part in PARTS if not only or part.name in named]


def _run(part: Part, job: Job, limit_s: float, ends: dict[str, str]) -> Outcome:
    if lacking := [name for name in part.needs if ends.get(name, "done") != "done"]:
        # Figures of an earlier run in the same folder are not this one's.
        (Path(job.out) / f"{part.name}.jsonl").unlink(missing_ok=True)
        return Outcome(part.name, "not run", 0.0, f"it needs {' and '.join(lacking)}")
    return run(replace(part, limit_s=limit_s), job, _environment(job))


def _limit(part: Part, job: Job) -> float:
    """Seconds; a download is not among the eight minutes, and a tiny run may be on a CPU."""
    if part.name == "base" and job.model:
        return 3600.0
    return part.limit_s * (10 if job.tiny else 1)


def _environment(job: Job) -> dict[str, str]:
    """Variables of the parts: a Hub id may be downloaded; kernels run interpreted on a CPU."""
    found = {"HF_HUB_OFFLINE": "0"} if job.model else {}
    return found if torch.cuda.is_available() else found | {"TRITON_INTERPRET": "1"}


def _write(out: Path, job: Job, outcomes: list[Outcome]) -> dict[str, Any]:
    kept = {o.name: figures(out, o.name) for o in outcomes}
    # The base is made, not measured, and so is the device.
    some = any(found for name, found in kept.items() if name not in ("base", "device"))
    measured = torch.cuda.is_available() and not job.tiny and some
    found: dict[str, Any] = {
        "measured": measured,
        "environment": provenance(),
        "job": {"model": job.model or "random, 8B shape", "tiny": job.tiny},
        "parts": [asdict(outcome) for outcome in outcomes],
        "figures": kept,
        "ratios": summary(kept) if measured else "not measured",
    }
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint folder or Hub id")
    parser.add_argument("--tiny", action="store_true", help="small shapes; measures nothing")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", action="append", default=[], choices=names)
    parser.add_argument("--out", default=str(WORK / "gpu"), help="folder for figures and logs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
