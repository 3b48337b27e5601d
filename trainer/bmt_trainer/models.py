"""Loading the base model: a folder, or a model of the Hub."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bmt_core import Base, fingerprint
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bmt_trainer.errors import ModelNotFound

#: What a Hub snapshot needs here: no second copy of the weights in another format.
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "tokenizer*"]


def checkpoint_folder(model: str | Path) -> Path:
    """The folder of `model`: itself, or where the Hub's snapshot lies (downloaded if needed).

    Raises ModelNotFound.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"model {str(model)!r} is no folder here and the Hub does not give it "
            f"({type(error).__name__}); name a folder or a model such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        ) from error


def base_of(model: str | Path, folder: Path) -> Base:
    """The identity that a mask of this checkpoint carries. `model` is as the user named it."""
    name = str(model) if not Path(model).expanduser().is_dir() else folder.resolve().name
    return Base(model_id=name, fingerprint=fingerprint(folder))


def load_model(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The causal model, in eval mode: in the checkpoint's own dtype, or in float32 on a CPU that
    has no instructions for 16 bits, where that is several times faster.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if slow_in_16_bits(device) and model.dtype in (torch.bfloat16, torch.float16):
        model.float()
    model.to(device)  # type: ignore[arg-type]
    model.get_output_embeddings().register_forward_pre_hook(contiguous)
    return model.eval()


def contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hook before an LM head: the last position's states as rows of their own, not a view.

    Generation reads prompts for the logits of their last position, a view [B, 1, d] into [B, T, d].
    For such a view and a frozen weight torch 2.13's `F.linear` makes a batched product on a CPU,
    and copies the weight once a row: 1.7 GB for 32 rows and SmolLM2 (docs/log.md).
    """
    return (inputs[0].contiguous(), *inputs[1:])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block, and arithmetic as a server's, in the dtype of 16-bit weights.

    accelerate leaves its autocast around the forward pass of a model that it trains (accelerate
    1.15, accelerator.py, `prepare_model`). fp32 weights that were trained under it stay so: rounded
    to bf16 they are what learnt, and what is served; unrounded another model (docs/log.md).
    """
    training, autocast = model.training, model.__dict__.get("forward")
    own = model.__dict__.get("_original_forward")
    if next(model.parameters()).dtype not in (torch.bfloat16, torch.float16):
        own = None
    model.eval()
    if own is not None:
        model.forward = own
    try:
        yield
    finally:
        if own is not None:
            model.forward = autocast
        model.train(training)


def autocast_of(model: nn.Module) -> torch.autocast:
    """The autocast that `model` is trained under, if any, for another one beside it."""
    place = next(model.parameters()).device.type
    return torch.autocast(place, torch.bfloat16, enabled="_original_forward" in model.__dict__)


def slow_in_16_bits(device: torch.device | str) -> bool:
    """Whether `device` is an x86 CPU that has no instructions for bf16: AVX2 and older."""
    level = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return torch.device(device).type == "cpu" and x86 and level in ("DEFAULT", "NO AVX", "AVX2")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pick_device(device: str) -> torch.device:
    """`device`, or with "auto" the first accelerator, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
