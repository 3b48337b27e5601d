"""Engine of `bmt-train`'s evaluations: greedy completions by offline vLLM, with and without a mask.

Registered in the entry point group `bmt.evaluation_engines`, so that the trainer finds it by name
and imports nothing of the server.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import bmt_core

from bmt_server.offline import mask_request, masked_llm


class GreedyEngine:
    """A `vllm.LLM` with masks that completes prompts of token ids.

    model: a checkpoint's folder; max_num_seqs: sequences in flight. Raises SettingsError for a
    second base model in one process, and what vLLM raises.
    """

    def __init__(self, model: str, *, max_num_seqs: int) -> None:
        # -1: the model's own context length, or what fits in memory.
        self._llm = masked_llm(model, max_model_len=-1, max_num_seqs=max_num_seqs)

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, mask: bmt_core.Mask | None = None
    ) -> list[list[int]]:
        """Token ids of the greedy completion of each prompt; without a mask, of the base."""
        from vllm import SamplingParams

        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            SamplingParams(temperature=0.0, max_tokens=max_tokens),
            lora_request=None if mask is None else mask_request(mask),
            use_tqdm=sys.stderr.isatty(),
        )
        return [list(output.outputs[0].token_ids) for output in outputs]
