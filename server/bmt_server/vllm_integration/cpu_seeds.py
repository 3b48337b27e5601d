"""Requests with a seed on the CPU, whose prompts take several steps.

A step that ends within a prompt samples a token in vain, and vLLM 0.32.0 then winds the request's
generator back by its offset (`v1/worker/gpu_model_runner.py`, `_bookkeeping_sync`). Generators of
the CPU have none: torch raises, and the engine dies of one client's `seed`. Here their state is
put back instead, so that an answer is the same in however many steps its prompt was read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def keep(runner: Any) -> None:
    """Change this model runner, of vLLM's CPU backend."""
    sample, bookkeep = runner._sample, runner._bookkeeping_sync

    def in_vain() -> dict[int, torch.Generator]:
        """Generators of requests whose token of this step is thrown away, by their rows."""
        batch = runner.input_batch
        rows = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0].tolist()
        return {row: batch.generators[row] for row in rows if row in batch.generators}

    def sampled(*args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in in_vain().values()]
        answer = sample(*args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return answer

    def booked(*args: Any, **kwargs: Any) -> Any:
        kept = in_vain()
        for row in kept:
            del runner.input_batch.generators[row]
        try:
            return bookkeep(*args, **kwargs)
        finally:
            runner.input_batch.generators.update(kept)

    runner._sample, runner._bookkeeping_sync = sampled, booked
