"""The checkpoint that vLLM serves: its local folder, and its gates."""

from __future__ import annotations

from pathlib import Path

import bmt_core
from bmt_core.checkpoint_files import DOWNLOADED, NOT_DOWNLOADED, second_copies
from bmt_core.gates.geometry import has_expert_gates, quantized_gates
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from vllm import ModelRegistry

from bmt_server.settings import SettingsError


class ModelNotFoundError(SettingsError):
    """A model is neither a folder nor a repository of the Hub; the message names it."""


def checkpoint_folder(model: str, revision: str | None = None) -> str:
    """Return the checkpoint's folder: `model` itself, or the Hub snapshot of that id.

    Downloads the snapshot if the Hub cache does not hold it. Raises ModelNotFoundError.
    """
    if Path(model).is_dir():
        return model
    try:
        return snapshot_download(
            model,
            revision=revision,
            allow_patterns=[*DOWNLOADED],
            ignore_patterns=[*NOT_DOWNLOADED],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        revised = f" at revision {revision!r}" if revision else ""
        raise ModelNotFoundError(
            f"model {model!r} is not a folder, and the Hub does not provide it{revised} "
            f"({type(error).__name__}); name the folder of a checkpoint or a model such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        ) from error


def has_class(architecture: str) -> bool:
    """True if vLLM has a class of its own for an architecture of `config.json`."""
    return architecture in ModelRegistry.get_supported_archs()


def served_gates(folder: str) -> dict[str, tuple[int, int]]:
    """The shapes of a checkpoint's gates by name, read from its headers.

    Raises SettingsError if masks cannot be served on them, before a weight is loaded, and
    bmt_core.CheckpointError.
    """
    if quantized := quantized_gates(folder):
        name, dtype = next(iter(quantized.items()))
        raise SettingsError(
            f"{folder} is quantized: {name} holds codes of type {dtype}, and masks need "
            "unquantized gate projections; serve the checkpoint that it was made from"
        )
    gates = bmt_core.geometry(folder)
    if gates:
        return gates
    if has_expert_gates(folder):
        raise SettingsError(
            f"{folder} has gate projections of experts alone, which `bmt-train` trains and no "
            "server takes yet; serve a dense model"
        )
    raise SettingsError(
        f"{folder} has no gate projections (*.mlp.gate_proj.weight, or the first rows of "
        "*.mlp.gate_up_proj.weight of Phi and GLM); masks need a dense model of such an "
        "architecture, and `bmt-train doctor` says what a model has"
    )


def load_format(folder: str, chosen: str) -> str:
    """vLLM's `--load-format` for a checkpoint: `chosen`, or the format of the fingerprint's files.

    With `auto`, vLLM 0.32.0 (`model_executor/model_loader/default_loader.py`) prefers a second copy
    of the weights, which the fingerprint does not cover.
    """
    return "safetensors" if chosen == "auto" and second_copies(folder) else chosen
