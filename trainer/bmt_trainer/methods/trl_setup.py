"""A patch of TRL: on a CPU, losses compute log-probabilities at labels only."""

from __future__ import annotations

import torch
from trl.kernels.chunked_logprob import _use_triton
from trl.trainer import utils


def prepare_trl() -> None:
    """Apply the patch; a second call changes nothing. Call it before a TRL trainer trains.

    Without Triton, TRL's head scores prompts and padding too, so that it compiles, and sets the
    results to 0 (TRL 1.16, trainer/utils.py, `add_fused_lm_head`). With answers of a dozen tokens
    to prompts of hundreds that was 40 % of a step (docs/log.md).
    """
    utils._use_triton = _labels_only


def _labels_only(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_use_triton(device))
