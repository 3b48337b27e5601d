"""Seeded generators of requests whose sampled token is discarded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from bmt_server.vllm_integration.worker_hooks import cpu_seeds


class Runner:
    """The patched parts of vLLM's model runner, which rewinds generators by their offset."""

    def __init__(self, rows: int) -> None:
        self.discard_request_mask = SimpleNamespace(np=np.zeros(8, dtype=bool))
        generators = {row: torch.Generator().manual_seed(row) for row in range(rows)}
        self.input_batch = SimpleNamespace(num_reqs=rows, generators=generators)

    def _sample(self) -> dict[int, float]:
        generators = self.input_batch.generators
        return {row: float(torch.rand(1, generator=g)) for row, g in generators.items()}

    def _bookkeeping_sync(self) -> None:
        for row in np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]:
            generator = self.input_batch.generators.get(int(row))
            if generator is not None:
                generator.set_offset(generator.get_offset() - 4)

    def step(self, *discarded: int) -> dict[int, float]:
        self.discard_request_mask.np[:] = False
        self.discard_request_mask.np[list(discarded)] = True
        drawn = self._sample()
        self._bookkeeping_sync()
        return drawn


def test_a_discarded_token_changes_no_later_token():
    kept, whole = Runner(3), Runner(3)
    cpu_seeds.patch_runner(kept)
    first = kept.step(0, 2)
    generators = kept.input_batch.generators
    assert sorted(generators) == [0, 1, 2]
    second, wanted, next_wanted = kept.step(), whole.step(), whole.step()
    assert (second[0], second[2]) == (wanted[0], wanted[2]), "as if the prompt took one step"
    assert (first[1], second[1]) == (wanted[1], next_wanted[1]), "others go on"
