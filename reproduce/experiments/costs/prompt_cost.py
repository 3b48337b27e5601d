"""Time of the GRPO loss: each prompt computed once against once per completion."""

from __future__ import annotations

import torch
from bmt_trainer.methods.rollouts.shared_prefix import SharedPrompts
from bmt_trainer.methods.trl_setup import prepare_trl
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from reproduce.experiments.costs.turns import first_loss_over_second, masked_model
from reproduce.experiments.record import keep, ratio

COMMAND = "make reproduce NAME=costs-prompts"
# A step of recipes/grpo-arithmetic.yaml, whose prompts have 50 tokens.
PROMPTS, COMPLETIONS, PROMPT, COMPLETION = 8, 8, 50, 16


def compare() -> None:
    """Time both in turns; keep the ratio and print the difference of their gradients."""
    prepare_trl()
    torch.manual_seed(0)
    model, attached = masked_model()
    add_fused_lm_head(model)
    shared = SharedPrompts(model, model.config, attached.state, PROMPT)
    rows = _rows(model.config.vocab_size)
    time_ratio = first_loss_over_second(
        {
            "shared": lambda: shared(**rows, fused_lm_head=True).log_probs.sum(),
            "whole": lambda: model(**rows, fused_lm_head=True).log_probs.sum(),
        },
        attached.gates(),
    )
    keep([ratio("loss_time_shared_over_whole", time_ratio, COMMAND)])
    print(f"loss_time_shared_over_whole {time_ratio}")


def _rows(vocabulary: int) -> dict[str, Tensor]:
    prompts = torch.randint(100, vocabulary, (PROMPTS, PROMPT)).repeat_interleave(COMPLETIONS, 0)
    completions = torch.randint(100, vocabulary, (len(prompts), COMPLETION))
    ids = torch.cat([prompts, completions], dim=1)
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
