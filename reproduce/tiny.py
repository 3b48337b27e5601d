"""Tiny random models and data of the paper's architectures and forms, for dry runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bmt_trainer.errors import ConfigError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: Mapping[str, Any] = {
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


def family(model: str) -> str:
    """The architecture of one of the paper's models, `qwen2` or `llama`, by its name."""
    return "qwen2" if "qwen" in model.lower() else "llama"


def checkpoint(architecture: str, folder: Path) -> Path:
    """Write a random bf16 model of 2 layers and its byte tokenizer; returns the folder."""
    torch.manual_seed(0)
    model = (
        Qwen2ForCausalLM(Qwen2Config(**SHAPE))
        if architecture == "qwen2"
        else LlamaForCausalLM(LlamaConfig(**SHAPE))
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def dataset(like: str, folder: Path, count: int = 8) -> str:
    """A data set of `count` rows with the form of `like`; a generated task is its own.

    Raises ConfigError for a form without tiny rows.
    """
    form, _, place = like.partition(":")
    if form == "task":
        return like
    if form not in _ROWS:
        raise ConfigError(f"no dry run has rows of {form!r}; add them to reproduce/tiny.py")
    rows = [_ROWS[form](n) for n in range(count)]
    file = folder / f"{form}.json{'' if form == 'bbeh' else 'l'}"
    if form == "bbeh":
        file.write_text(json.dumps({"examples": rows}))
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    return f"{form}:{file}" + ("?subject=law" if "subject=" in place else "")


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


_ROWS: Mapping[str, Any] = {
    "gsm8k": lambda n: {"question": f"{n} and 1?", "answer": f"So.\n#### {n + 1}"},
    "math": lambda n: {"problem": f"{n} and 1?", "answer": str(n + 1)},
    "mmlu-pro": lambda n: {
        **{"question": f"{n}?", "options": ["a", "b"], "answer": "A"},
        **{"category": "law"},
    },
    "bbeh": lambda n: {"input": f"{n} and 1?", "target": str(n + 1)},
    "tools": lambda n: {
        "prompt": f"Boil {n}.",
        "golden_answer": [{"Action": "boil", "Action_Input": "{}"}],
        "golden_response": ["Action: boil"],
    },
}
