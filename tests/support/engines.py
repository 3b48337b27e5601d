"""One real vLLM engine in its own process, with its output as JSON; transformers to compare with.

One process per engine, because masks, stock LoRA and the plain engine patch or configure their
process, and because each comparison needs an engine with its own flags.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from bmt_trainer.models import load_model

TIMEOUT_S = 900
CHILDREN = Path(__file__).with_name("children")


def run_engine(
    script: str,
    job: dict[str, Any],
    folder: Path,
    env: dict[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
):
    """Run `script` (a module of `children/`) on `job` and return its JSON output."""
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
        timeout=timeout_s,
        check=False,
    )
    if not out_file.exists():
        raise AssertionError(f"{script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return json.loads(out_file.read_text())


def log_probabilities(folder: Path, sequences: Iterable[list[int]]) -> torch.Tensor:
    """log p of each token given those before it, in fp32, of one sequence after the other."""
    model, found = load_model(folder, fp32=True), []
    for ids in sequences:
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        found.append(logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])
    return torch.cat(found)


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
