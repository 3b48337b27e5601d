"""A tiny random Llama and a byte tokenizer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bmt_trainer.console
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, and the three of a chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: at for at, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C at the end of an optimizer step, as the trainer's last callback."""
    show = bmt_trainer.console.StepProgress.on_step_end

    def stop(self, args, state, control, **rest):
        show(self, args, state, control, **rest)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(bmt_trainer.console.StepProgress, "on_step_end", stop)


def tiny_llama(
    dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> LlamaForCausalLM:
    """A random Llama; changes: of its configuration."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**shape | changes)).to(dtype).eval()


def save_tiny_llama(
    folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Path:
    """Write `tiny_llama` and its tokenizer as a checkpoint; returns its folder."""
    tiny_llama(dtype, seed, **changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
