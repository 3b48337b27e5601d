"""Log-probabilities of several completions per prompt, as in GRPO, with each prompt read once.

The keys and values of a prompt's tokens are computed once and repeated for the rows of its
completions; gradients flow back through them. With 8 completions of a dozen tokens to a prompt of
50, the model reads a third of the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from bmt_trainer.masking.masked_linear import MaskState
from bmt_trainer.models import repeats_cache


class SharedPrompts:
    """A causal language model as TRL's `_get_per_token_logps_and_entropies` calls it.

    prompt: length of the left-padded prompts, in tokens. config: the model's.
    """

    def __init__(self, model: Any, config: PretrainedConfig, state: MaskState, prompt: int) -> None:
        self._model, self._config, self._state = model, config, state
        # The prompt's last token goes with the completion, whose first token it predicts.
        self._shared = prompt - 1

    def __call__(
        self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **options: Any
    ) -> Any:
        """input_ids, attention_mask, labels: [B, prompt + completion]."""
        shared = self._shared
        rows = torch.cat([input_ids[:, :shared], attention_mask[:, :shared]], dim=1)
        prompts, of_row = torch.unique(rows, dim=0, return_inverse=True)
        if not shared or len(prompts) == len(rows) or not repeats_cache(self._config):
            return self._model(
                input_ids=input_ids, attention_mask=attention_mask, labels=labels, **options
            )
        ids, attend = prompts.split(shared, dim=1)
        cache = DynamicCache(config=self._config)
        # A layer's backward adds the regularizer; it must do so once, with the completions.
        with self._state.unregularized():
            self._model(
                input_ids=ids,
                attention_mask=attend,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache.batch_select_indices(of_row)
        return self._model(
            input_ids=input_ids[:, shared:],
            attention_mask=attention_mask,
            past_key_values=cache,
            labels=labels[:, shared:],
            **options,
        )
