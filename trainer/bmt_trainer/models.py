"""Loading of base models and tokenizers, from a folder or the Hub."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bmt_core import Base, fingerprint
from bmt_core.checkpoint_files import DOWNLOADED, NOT_DOWNLOADED
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from bmt_trainer import hub
from bmt_trainer.checkpoint_files import check_checkpoint
from bmt_trainer.distributed import any_rank
from bmt_trainer.errors import ConfigError, ModelError, ModelNotFound, NonFinite
from bmt_trainer.process import world_size
from bmt_trainer.settings import expanded
from bmt_trainer.templates import shipped
from bmt_trainer.templates.chat_templates import read_template


def checkpoint_folder(model: str | Path) -> Path:
    """The folder of a checkpoint: `model` itself, or the Hub's snapshot, downloaded if needed.

    Raises ModelNotFound.
    """
    folder = expanded(model)
    if folder.is_dir():
        return folder
    offline = hub.unreachable() if hub.is_id(str(model)) else "no such folder"
    try:
        found = snapshot_download(
            str(model),
            allow_patterns=[*DOWNLOADED],
            ignore_patterns=[*NOT_DOWNLOADED],
            local_files_only=offline is not None,
        )
        return Path(found)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"model {str(model)!r} is not a folder, and the Hub does not provide it "
            f"({offline or type(error).__name__}); name a folder or a model such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        ) from error


def commit_of(model: str) -> str:
    """The commit of a model of the Hub, as `hub.commit`."""
    return hub.commit(model, "model")


def base_of(model: str | Path, folder: Path) -> Base:
    """The identity of a checkpoint that masks carry; `model` is the name that the user gave."""
    name = str(model) if not expanded(model).is_dir() else folder.resolve().name
    return Base(model_id=name, fingerprint=fingerprint(folder))


def outline(folder: Path) -> nn.Module:
    """The causal model without weights, on torch's meta device: its layers and their shapes.

    Raises ModelError.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model: nn.Module = architecture_of(config).from_config(config)
    except Exception as error:  # whatever a model's code raises for a configuration that it rejects
        raise _not_loaded(folder, "a causal language model", error) from error
    return model


def architecture_of(config: PretrainedConfig) -> type[Any]:
    """The class of transformers that loads the text of a configuration's model.

    A family of several inputs that has no causal model of its own is loaded whole, for its text.
    """
    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _not_loaded(folder: Path, what: str, error: Exception) -> ModelError:
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return ModelError(f"{folder} cannot be loaded as {what} ({type(error).__name__}: {first})")


def load_model(
    folder: Path, device: torch.device | str = "cpu", *, fp32: bool = False
) -> PreTrainedModel:
    """Load the causal model in eval mode.

    In the checkpoint's dtype; in fp32 if `fp32` is set, or if the device is a CPU without
    instructions for 16 bits, where fp32 is several times faster. Raises ModelError, and
    QuantizedModel for quantized weights.
    """
    check_checkpoint(folder)
    try:
        kind = architecture_of(AutoConfig.from_pretrained(folder))
        made: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
            folder, dtype=torch.float32 if fp32 else "auto", output_loading_info=True
        )
    except Exception as error:  # of any kind: KeyError, ImportError, SafetensorError, …
        raise _not_loaded(folder, "a causal language model", error) from error
    model, info = made
    if missing := sorted(info.get("missing_keys", ())):
        raise ModelError(
            f"{folder} lacks {len(missing)} tensors of its model, {missing[0]} among them, which "
            "would start at random; use the complete checkpoint"
        )
    if slow_in_16_bits(device) and model.dtype in (torch.bfloat16, torch.float16):
        model.float()
    model.to(device)  # type: ignore[arg-type]
    model.get_output_embeddings().register_forward_pre_hook(contiguous)
    return model.eval()


def contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook of an LM head: copies the last position's states [B, 1, d] out of a view.

    Generation passes a view into the states [B, T, d]. For such a view and a frozen weight,
    `F.linear` of torch 2.13 runs a batched product on a CPU and copies the weight once per row:
    1.7 GB for 32 rows and SmolLM2 (docs/results/log/lm-head-copies.md).
    """
    return (inputs[0].contiguous(), *inputs[1:])


@contextmanager
def finite_logits(model: nn.Module) -> Iterator[None]:
    """Raise NonFinite for logits in the block that have NaN, or infinity above.

    In several processes the block is left to its end, and all raise; a rollout that draws from
    such logits then draws from zeros.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    alone, found = world_size() == 1, []

    def look(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor | None:
        # The largest of values with NaN among them is NaN.
        if bool(torch.isfinite(logits.detach().amax())):
            return None
        found.append(True)
        if alone:
            raise NonFinite(_LOGITS)
        return torch.zeros_like(logits)

    hook = head.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
    if any_rank(bool(found), next(model.parameters()).device):
        raise NonFinite(_LOGITS)


_LOGITS = (
    "the model's logits are not finite; weights in float16 overflow at 65,504: train with "
    "--precision fp32, or convert the checkpoint to bfloat16 (dtype=torch.bfloat16, then "
    "save_pretrained)"
)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode in the block, and for 16-bit weights a server's arithmetic, in their dtype.

    accelerate leaves its autocast around the forward pass of a model that it trains (accelerate
    1.15, accelerator.py, `prepare_model`). fp32 weights that were trained under autocast keep it:
    rounded to bf16 they are the model that was trained and is served, unrounded they are another
    one (docs/results/log/full-fine-tuning-bf16.md).

    Raises NonFinite for logits that are not finite.
    """
    training, autocast = model.training, model.__dict__.get("forward")
    original = model.__dict__.get("_original_forward")
    if next(model.parameters()).dtype not in (torch.bfloat16, torch.float16):
        original = None
    model.eval()
    if original is not None:
        model.forward = original
    try:
        with finite_logits(model):
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


def load_tokenizer(folder: Path, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer; its padding token is the EOS token unless the checkpoint sets one.

    chat_template: a file, or a name for `read_template`, used instead of the checkpoint's own.
    Raises ModelError, and ConfigError for a template that cannot be used.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of any kind: OSError, ValueError, ImportError, …
        reason = str(error).strip().split("\n")[0].rstrip(": ")
        raise ModelError(
            f"{folder} has no tokenizer that transformers loads ({reason}); a checkpoint has its "
            "tokenizer.json next to its weights"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    if isinstance(tokenizer.chat_template, str):
        # For readers of tool calls in answers; the checkpoint's own stays.
        read = shipped.response_template(tokenizer.chat_template)
        if read is not None:
            tokenizer.response_template = read
    return tokenizer


def local_folder(model: str) -> Path | None:
    """The folder of a checkpoint, or of a model of the Hub that is in its cache; else None.

    Nothing is downloaded.
    """
    if (folder := expanded(model)).is_dir():
        return folder
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def end_tokens(folder: Path) -> set[int]:
    """The tokens that end an answer by a checkpoint's `generation_config.json`, if it has one."""
    try:
        given = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # no such file
        given = AutoConfig.from_pretrained(folder).get_text_config().eos_token_id
    return {given} if isinstance(given, int) else set(given or ())


def context_length(folder: Path) -> int | None:
    """The most tokens that a checkpoint's `config.json` allows in a sequence; None if it says none.

    `max_position_embeddings`, or the length that its scaled rotary embedding reaches.
    """
    config = AutoConfig.from_pretrained(folder).get_text_config()
    stated = getattr(config, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated <= 0:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layer.
    several = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    lengths = [
        int(entry["factor"] * entry["original_max_position_embeddings"])
        for entry in several
        if entry.get("factor") and entry.get("original_max_position_embeddings")
    ]
    return max(stated, *lengths) if lengths else stated


def repeats_cache(config: PretrainedConfig) -> bool:
    """True if the cache of one sequence may be repeated for others that begin alike.

    Keys and values may. The recurrent states of linear attention and of state spaces are not
    repeated with them (transformers 5.19, cache_utils.py), in silence for layers that have both.
    """
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def pick_device(device: str) -> torch.device:
    """The device of a setting: `device` itself, or for "auto" the first GPU, else the CPU.

    Raises ConfigError for a name that torch does not know, and for a GPU that it does not find.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"device: {device!r} is none of torch's; set auto, cpu, cuda or mps"
        ) from None
    found = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= found:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        raise ConfigError(
            f"device: {device} is set, and torch {torch.__version__}, {build}, finds {found} GPUs; "
            "set auto or cpu, or install the driver and bmt-adapters[gpu]"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device: {device} is set, and torch {torch.__version__} finds no GPU of Apple's; set "
            "auto or cpu"
        )
    return chosen


def device_note(device: str) -> str | None:
    """A line on Apple's GPU for a setting of the device: taken and untested, or there and left."""
    if device == "mps":
        return (
            "device: mps, on which no test of this project runs; with precision auto it computes "
            "in the checkpoint's dtype, without autocast"
        )
    if device == "auto" and not torch.cuda.is_available() and torch.backends.mps.is_available():
        return "device: cpu; Apple's GPU is there, untested by this project: --device mps takes it"
    return None
