"""An engine of rollouts without vLLM: transformers under the mask that was pushed last."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bmt_core
import torch
from bmt_trainer.masking.apply import apply
from bmt_trainer.methods.rollouts.local import sample
from bmt_trainer.models import load_model


class TransformersEngine:
    """As the server's `RolloutEngine`. pushes: the masks; fails_at: the push that fails, from 1."""

    fails_at = 0
    starts = ""

    def __init__(self, model: str, **options: Any) -> None:
        if self.starts:
            raise ValueError(self.starts)
        self.folder, self.options = Path(model), options
        self.pushes: list[bmt_core.Mask] = []
        self.asked: list[tuple[list[int], list[int]]] = []
        self.open = True
        MADE.append(self)

    context = 1000

    def push(self, mask: bmt_core.Mask) -> Any:
        before = self.pushes[-1] if self.pushes else None
        self.pushes.append(mask)
        if len(self.pushes) == self.fails_at:
            raise RuntimeError("the engine\nhas died")
        flips = mask if before is None else bmt_core.symmetric_difference(before, mask)
        return SimpleNamespace(size=len(bmt_core.encode(flips)), flips=flips.zeros)

    def sample(self, prompts: Any, counts: Any, seeds: Any, limits: Any, sampling: Any) -> Any:
        self.asked.append((list(counts), list(seeds)))
        model = load_model(self.folder)
        apply(self.pushes[-1], model, base_fingerprint=self.pushes[-1].base.fingerprint)
        made = []
        with torch.random.fork_rng():
            for ids, count, seed, limit in zip(prompts, counts, seeds, limits, strict=True):
                torch.manual_seed(seed)
                rows = sample(
                    model,
                    [list(ids)] * count,
                    max_new_tokens=limit,
                    temperature=sampling["temperature"],
                    eos_token_ids=sampling["stop_token_ids"],
                    pad_token_id=0,
                )
                made.append([(row, [-1.0] * len(row)) for row in rows])
        return made

    def close(self) -> None:
        self.open = False


#: The engines that were made.
MADE: list[TransformersEngine] = []
