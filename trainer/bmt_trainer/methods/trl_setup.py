"""Preparation of TRL: log-probabilities on a CPU, and the parsing of tool calls."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)
from trl.kernels.chunked_logprob import _use_triton
from trl.trainer import utils

from bmt_trainer.errors import ConfigError
from bmt_trainer.templates import shipped

# The end of errors on templates that rollouts with tools cannot use.
_USE_OURS = "use --chat-template tools (a ChatML template) for training and for serving"


def prepare_trl() -> None:
    """Apply the patch; a second call changes nothing. Call it before a TRL trainer trains.

    Without Triton, TRL's head scores prompts and padding too, so that it compiles, and sets the
    results to 0 (TRL 1.16, trainer/utils.py, `add_fused_lm_head`). With answers of a dozen tokens
    to prompts of hundreds that was 40 % of a step (docs/results/log/labels-alone.md).
    """
    utils._use_triton = _labels_only


def _labels_only(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_use_triton(device))


def prepare_tool_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let TRL parse tool calls out of the tokens of `tokenizer`'s answers. Raises ConfigError.

    By the tokenizer's own response template, that of a template of this package, or TRL's for the
    chat templates that it knows.
    """
    if not tokenizer.chat_template:
        raise ConfigError(f"tools, environment: the model has no chat template; {_USE_OURS}")
    if not supports_tool_calling(tokenizer):
        raise ConfigError(
            "tools, environment: the chat template leaves out calls or what tools answer; "
            f"{_USE_OURS}"
        )
    if getattr(tokenizer, "response_template", None) is None:
        known = shipped.response_template(tokenizer.chat_template)
        try:
            if known is not None:
                tokenizer.response_template = known
            else:
                add_response_schema(tokenizer)
        except ValueError:
            raise ConfigError(
                "tools, environment: TRL cannot parse the calls of this chat template, and the "
                f"tokenizer has no response_template; {_USE_OURS}"
            ) from None
    if not is_chat_template_prefix_preserving(tokenizer):
        try:
            get_training_chat_template(tokenizer)
        except ValueError:
            raise ConfigError(
                "tools, environment: the chat template renders earlier turns otherwise in a longer "
                f"chat, and TRL has no other for it; {_USE_OURS}"
            ) from None
