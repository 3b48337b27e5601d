"""Loading of base models and tokenizers, from a folder or the Hub."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bmt_core import Base, fingerprint
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bmt_trainer.errors import ModelNotFound

#: Files of a Hub snapshot to download: not a second copy of the weights in another format.
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "tokenizer*"]


def checkpoint_folder(model: str | Path) -> Path:
    """The folder of a checkpoint: `model` itself, or the Hub's snapshot, downloaded if needed.

    Raises ModelNotFound.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(model), allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"model {str(model)!r} is not a folder, and the Hub does not provide it "
            f"({type(error).__name__}); name a folder or a model such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        ) from error


def base_of(model: str | Path, folder: Path) -> Base:
    """The identity of a checkpoint that masks carry; `model` is the name that the user gave."""
    name = str(model) if not Path(model).expanduser().is_dir() else folder.resolve().name
    return Base(model_id=name, fingerprint=fingerprint(folder))


def load_model(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load the causal model in eval mode.

    In the checkpoint's dtype, or in fp32 if the device is a CPU without instructions for 16 bits:
    fp32 is several times faster there.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if slow_in_16_bits(device) and model.dtype in (torch.bfloat16, torch.float16):
        model.float()
    model.to(device)  # type: ignore[arg-type]
    model.get_output_embeddings().register_forward_pre_hook(contiguous)
    return model.eval()


def contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook of an LM head: copies the last position's states [B, 1, d] out of a view.

    Generation passes a view into the states [B, T, d]. For such a view and a frozen weight,
    `F.linear` of torch 2.13 runs a batched product on a CPU and copies the weight once per row:
    1.7 GB for 32 rows and SmolLM2 (docs/log.md).
    """
    return (inputs[0].contiguous(), *inputs[1:])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode in the block, and for 16-bit weights a server's arithmetic, in their dtype.

    accelerate leaves its autocast around the forward pass of a model that it trains (accelerate
    1.15, accelerator.py, `prepare_model`). fp32 weights that were trained under autocast keep it:
    rounded to bf16 they are the model that was trained and is served, unrounded they are another
    one (docs/log.md).
    """
    training, autocast = model.training, model.__dict__.get("forward")
    original = model.__dict__.get("_original_forward")
    if next(model.parameters()).dtype not in (torch.bfloat16, torch.float16):
        original = None
    model.eval()
    if original is not None:
        model.forward = original
    try:
        yield
    finally:
        if original is not None:
            model.forward = autocast
        model.train(training)


def autocast_of(model: nn.Module) -> torch.autocast:
    """The autocast that accelerate trains `model` under, to run another model alike.

    Disabled if accelerate does not train it.
    """
    kind = next(model.parameters()).device.type
    return torch.autocast(kind, torch.bfloat16, enabled="_original_forward" in model.__dict__)


def slow_in_16_bits(device: torch.device | str) -> bool:
    """True for an x86 CPU without bf16 instructions: AVX2 and older."""
    level = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return torch.device(device).type == "cpu" and x86 and level in ("DEFAULT", "NO AVX", "AVX2")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer; its padding token is the EOS token unless the checkpoint sets one."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pick_device(device: str) -> torch.device:
    """The device of a setting: `device` itself, or for "auto" the first GPU, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
