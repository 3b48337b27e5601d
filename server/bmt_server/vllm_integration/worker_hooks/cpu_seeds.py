"""Fix for seeded requests on the CPU whose prompts take several steps.

A step that ends inside a prompt samples a token that is discarded. vLLM 0.32.0 then rewinds the
request's generator by its offset (`v1/worker/gpu_model_runner.py`, `_bookkeeping_sync`). CPU
generators have no offset: torch raises, and one request with a `seed` ends the engine. This patch
restores the generator's state instead, so the output does not depend on the number of steps that
the prompt takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def patch_runner(runner: Any) -> None:
    """Replace `_sample` and `_bookkeeping_sync` of a model runner of vLLM's CPU backend."""
    sample, bookkeep = runner._sample, runner._bookkeeping_sync

    def discarded() -> dict[int, torch.Generator]:
        """Generators, by batch row, of requests whose token of this step is discarded."""
        batch = runner.input_batch
        rows = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0].tolist()
        return {row: batch.generators[row] for row in rows if row in batch.generators}

    def patched_sample(*args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in discarded().values()]
        output = sample(*args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return output

    def patched_bookkeeping(*args: Any, **kwargs: Any) -> Any:
        hidden = discarded()
        for row in hidden:
            del runner.input_batch.generators[row]
        try:
            return bookkeep(*args, **kwargs)
        finally:
            runner.input_batch.generators.update(hidden)

    runner._sample, runner._bookkeeping_sync = patched_sample, patched_bookkeeping
