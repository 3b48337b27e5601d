"""The experiments' second model: a checkpoint folder made of a GGUF of Qwen2.5-Coder-0.5B-Instruct.

Its values are those of 4 bits, so that 6.5 % of the gates' weights are exactly 0 in this base.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from bmt_trainer.errors import ModelError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness.environment import WORK

#: Name in the folder of data, and SHA-256, of the file of Q4_K_M. The model's license: Apache-2.0.
NAME = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
_FOLDER = WORK / "models" / "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M"


def folder() -> Path:
    """The checkpoint in bf16, made at the first call. Raises ModelError for another file."""
    if (_FOLDER / "config.json").exists():
        return _FOLDER
    file = Path(os.environ.get("PAPER_DATA", "data")) / NAME
    check(file)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    scratch = _FOLDER.with_name(_FOLDER.name + ".new")
    scratch.mkdir(parents=True, exist_ok=True)
    # By hand: `save_pretrained` refuses the weights although they are no longer quantized.
    save_file(model.state_dict(), scratch / "model.safetensors", metadata={"format": "pt"})
    del model.config.quantization_config
    model.config.save_pretrained(scratch)
    model.generation_config.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(**source).save_pretrained(scratch)
    scratch.rename(_FOLDER)
    return _FOLDER


def check(file: Path) -> None:
    """Raise ModelError unless the file's bytes are those that the figures are of."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        raise ModelError(
            f"{file} has SHA-256 {found[:12]}…, and the figures are of {SHA256[:12]}…; "
            "the file is another quantization, or its download is incomplete"
        )
