"""A tiny random Llama with the byte tokenizer of dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bmt_trainer.console
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reproduce.tiny import SHAPE, TEMPLATE, byte_tokenizer

__all__ = ["TEMPLATE", "byte_tokenizer", "interrupt_after", "save_tiny_llama", "tiny_llama"]


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
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes})).to(dtype).eval()


def save_tiny_llama(
    folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Path:
    """Write `tiny_llama` and its tokenizer as a checkpoint; returns its folder."""
    tiny_llama(dtype, seed, **changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
