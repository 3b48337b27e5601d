"""Child process of `engines.run_engine`: a training run whose rollouts vLLM samples in process.

Its output has the mask's digest, each step of the history, and for each turn of rollouts the
completions, their log-probabilities by vLLM and by the trainer's model, and the pushed mask.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import bmt_core
import torch
from bmt_trainer.console import Display
from bmt_trainer.methods import grpo, sdft
from bmt_trainer.methods.config import GrpoConfig, SdftConfig
from bmt_trainer.methods.rollouts.in_process.engine import EngineRollouts
from rich.console import Console

METHODS: dict[str, Any] = {"grpo": (GrpoConfig, grpo), "sdft": (SdftConfig, sdft)}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    kind, module = METHODS[job["method"]]
    settings = job["settings"]
    output = Path(settings["output"])
    turns: list[dict[str, Any]] = []
    pushed: list[bmt_core.Mask] = []
    plain = EngineRollouts.turn

    def turn(self: Any, prompts: Any, trainer: Any, *, first: bool) -> Any:
        made, values = plain(self, prompts, trainer, first=first)
        pushed.append(self._mask())
        rows = list(zip(prompts, made, strict=True))
        turns.append(
            {
                "completions": made,
                "engine": values,
                "trainer": scores(trainer, "hard", rows),
                "base": scores(trainer, "off", rows),
            }
        )
        return made, values

    EngineRollouts.turn = turn  # type: ignore[method-assign]
    mask = module.train(kind(**{**settings, "output": output}), Display(Console(file=sys.stderr)))
    history = json.loads((output.parent / f"{output.name}.history.json").read_text())
    flips = [bmt_core.symmetric_difference(*two).zeros for two in itertools.pairwise(pushed)]
    found = {"digest": mask.digest, "turns": turns, "steps": history["steps"]}
    found |= {"flips": [pushed[0].zeros, *flips], "first": pushed[0].digest}
    Path(sys.argv[2]).write_text(json.dumps(found))


@torch.no_grad()
def scores(trainer: Any, mode: Any, rows: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    """log p of each completion's tokens by the trainer's model in a mode, a row at a time."""
    model, found = trainer.model, []
    with trainer.attached.state.use(mode):
        for prompt, completion in rows:
            ids = torch.tensor([[*prompt, *completion]])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            log_p = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
            found.append(log_p[:, 0].tolist())
    return found


if __name__ == "__main__":
    main()
