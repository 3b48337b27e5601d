"""What TRL needs said before its trainers are used."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def prepare_trl() -> None:
    """To be called before TRL is imported; again does no harm.

    No warnings about a vLLM that it is not let use, nor that parts of it may change, for its
    version is pinned; and on a CPU it computes probabilities of labels alone.
    """
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.kernels.chunked_logprob import _use_triton
    from trl.trainer import utils

    def labels_alone(device: torch.device) -> bool:
        return device.type == "cpu" or bool(_use_triton(device))

    # Where TRL has no Triton, its head scores prompts and padding too, for a compiler's sake
    # (trl/trainer/utils.py, add_fused_lm_head), and sets the results to 0. With answers of a dozen
    # tokens to prompts of hundreds that was 40 % of a step (docs/log.md).
    utils._use_triton = labels_alone
