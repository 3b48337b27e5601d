"""Compare tiny training runs of two revisions: losses of each step and mask digests.

    python tools/compare_training.py OLD_REVISION [METHOD ...]

Checks the old revision out into a temporary folder and runs the same command lines there and here,
one after the other, on the demo's model. Exit code 1 unless every log and digest is identical.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bmt_core

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "trainer", "server", "client")
_GRPO = "--dataset task:arithmetic --completions 4"
RUNS = {
    "sft": "sft --dataset task:sort-numbers --steps 6 --batch-size 4",
    "grpo": f"grpo {_GRPO} --steps 3 --prompts-per-step 4 --max-new-tokens 16",
    "grpo-lean": f"grpo {_GRPO} --steps 2 --prompts-per-step 2 --micro-batch 4 "
    "--max-new-tokens 12 --lean auto --validation 4 --validate-every 1",
    "sdft": "sdft --dataset task:sort-numbers --steps 3 --prompts-per-step 4 --micro-batch 4 "
    "--max-new-tokens 24",
}
SHARED = "--heldout 8 --calibration-prompts 16 --seed 0"
# Timings differ between any two runs.
TIMED = ("time", "per_second", "flos")
# Keeps what trainers log, then is `bmt-train`.
CHILD = """
import json, runpy, sys
import transformers
target, logs, log = sys.argv.pop(1), [], transformers.Trainer.log
def kept(self, entry, *arguments, **options):
    logs.append({k: v for k, v in entry.items() if isinstance(v, (int, float))})
    return log(self, entry, *arguments, **options)
transformers.Trainer.log = kept
try:
    runpy.run_module("bmt_trainer", run_name="__main__", alter_sys=True)
finally:
    with open(target, "w") as file:
        json.dump(logs, file)
"""


def run(tree: Path, arguments: str, model: str, folder: Path) -> dict[str, Any]:
    """Train by the sources of `tree`. Raises subprocess.CalledProcessError."""
    child, logs, mask = folder / "child.py", folder / "logs.json", folder / "m.bmt"
    child.write_text(CHILD)
    command = [sys.executable, str(child), str(logs), *arguments.split(), *SHARED.split()]
    path = os.pathsep.join(str(tree / package) for package in PACKAGES)
    subprocess.run(
        [*command, "--model", model, "--output", str(mask)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        cwd=folder,
        check=True,
    )
    steps = [
        {k: v for k, v in entry.items() if not any(word in k for word in TIMED)}
        for entry in json.loads(logs.read_text())
    ]
    trained = bmt_core.load(mask)
    return {"digest": trained.digest, "zeros": trained.zeros, "steps": steps}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare tiny training runs of two revisions.")
    parser.add_argument("revision", help="the older revision")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(RUNS))
    options = parser.parse_args()
    if unknown := set(options.methods) - set(RUNS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RUNS)}")
    command = [sys.executable, str(ROOT / "examples/demo/model.py")]
    model = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        old = Path(scratch) / "old"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(old), options.revision], check=True)
        try:
            for name in options.methods or RUNS:
                made = []
                for label, tree in (("old", old), ("new", ROOT)):
                    folder = Path(scratch) / f"{label}-{name}"
                    folder.mkdir()
                    made.append(run(tree, RUNS[name], model, folder))
                same = made[0] == made[1]
                different += not same
                losses = [step["loss"] for step in made[1]["steps"] if "loss" in step]
                print(
                    f"{name}: {'identical' if same else 'DIFFERENT'}; digest "
                    f"{made[0]['digest'][:12]} {made[1]['digest'][:12]}, {made[1]['zeros']:,} "
                    f"zeros, last loss {losses[-1]:.6f}",
                    flush=True,
                )
                if not same:
                    print(json.dumps(made, indent=1))
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
