"""Runs one real vLLM engine in a process of its own and returns what it said as JSON.

A process each, because masks, stock LoRA and the plain engine patch or configure one process, and
because each comparison wants an engine with just its own flags.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bmt_core
import numpy as np

TIMEOUT_S = 900
CHILDREN = Path(__file__).with_name("children")


def run_engine(script: str, job: dict[str, Any], folder: Path, env: dict[str, str] | None = None):
    """Run `script` (a module of `children/`) on `job`; returns the JSON that it wrote."""
    job_file, out_file = folder / "job.json", folder / "out.json"
    job_file.write_text(json.dumps(job))
    out_file.unlink(missing_ok=True)
    command = [sys.executable, str(CHILDREN / script), str(job_file), str(out_file)]
    environment = {k: v for k, v in os.environ.items() if k != "BMT_SERVER_SETTINGS"}
    done = subprocess.run(
        command,
        env={**environment, **(env or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if not out_file.exists():
        raise AssertionError(f"{script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return json.loads(out_file.read_text())


def random_mask(model: Path, seed: int, sparsity: float = 0.004) -> bmt_core.Mask:
    """A mask of the model's gates with uniform random positions, at about SFT's sparsity."""
    rng = np.random.default_rng(seed)
    tensors = []
    for name, shape in bmt_core.geometry(model).items():
        numel = shape[0] * shape[1]
        positions = np.sort(rng.choice(numel, int(numel * sparsity), replace=False))
        tensors.append(bmt_core.TensorMask(name, shape, positions.astype(np.uint32)))
    return bmt_core.Mask(
        bmt_core.Base("test", bmt_core.fingerprint(model)), tuple(tensors), {"seed": seed}
    )


PROMPTS = [
    f"{start} {topic}"
    for start in (
        "The history of",
        "A short story about",
        "In the morning, she looked at",
        "Scientists have found that",
        "The best way to cook",
        "Once upon a time there was",
        "The difference between cats and",
        "My favourite memory of",
    )
    for topic in (
        "the sea and its",
        "a river that",
        "bread",
        "stars",
        "dogs",
        "music in the",
        "winter",
        "the city of",
    )
]
