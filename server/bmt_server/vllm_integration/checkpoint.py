"""The checkpoint that vLLM serves: its local folder, and its gates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bmt_core.checkpoint_files import DOWNLOADED, NOT_DOWNLOADED, second_copies
from bmt_core.fingerprint import checkpoint_types
from bmt_core.gates.geometry import Types, has_expert_gates, quantized_gates, served_geometry
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from vllm import ModelRegistry

from bmt_server.quantization import codes
from bmt_server.quantization.kinship import plain_precision
from bmt_server.settings import SettingsError

# Element types of weights that are no codes.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


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


@dataclass(frozen=True, slots=True)
class ServedGates:
    """The gates of a checkpoint that masks act on.

    shapes: [d_out, d_in] by the names that masks have for them; precision: of their weights, `bf16`
    or `int8`; quantized: they are stored as codes.
    """

    shapes: dict[str, tuple[int, int]]
    precision: str
    quantized: bool = False


def served_gates(folder: str) -> ServedGates:
    """The gates of a checkpoint, read from its headers once.

    Raises SettingsError if masks cannot be served on them, before a weight is loaded, and
    bmt_core.CheckpointError.
    """
    types = checkpoint_types(folder)
    if quantized_gates(folder, types):
        gates = codes.quantized_gates(folder, types)
        shapes = {name: (gate.rows, gate.shape[1]) for name, gate in gates.items()}
        return ServedGates(shapes, next(iter(gates.values())).precision, quantized=True)
    if shapes := served_geometry(folder, types):
        _check_plain(folder, types)
        return ServedGates(shapes, plain_precision(types, shapes))
    if has_expert_gates(folder, types):
        raise SettingsError(
            f"{folder} has gate projections of experts alone, and not as matrices of 16 or 32 bits "
            "(*.experts.N.gate_proj.weight or *.experts.N.w1.weight): a server takes no codes of "
            "experts and no tensor of all; serve a checkpoint that has such, or a dense model"
        )
    raise SettingsError(
        f"{folder} has no gate projections (*.mlp.gate_proj.weight, or the first rows of "
        "*.mlp.gate_up_proj.weight of Phi and GLM); masks need a dense model of such an "
        "architecture, and `bmt-train doctor` says what a model has"
    )


def _check_plain(folder: str, types: Types) -> None:
    """Refuse 16-bit gates that vLLM would quantize when it loads them, by the configuration.

    A quantizer that left the gates as they are has codes in other layers.
    """
    config = codes.quantization_config(folder)
    if config and all(kind in _PLAIN for kind, _ in types.values()):
        method = str(config.get("quant_method", "unknown"))[:40]
        raise SettingsError(
            f"{folder}/config.json says that the model is quantized (quantization_config, "
            f"{method}), and all weights are stored as such, so vLLM would quantize the gate "
            "projections when it loads them; remove that entry, or serve a checkpoint of codes"
        )


def load_format(folder: str, chosen: str) -> str:
    """vLLM's `--load-format` for a checkpoint: `chosen`, or the format of the fingerprint's files.

    With `auto`, vLLM 0.32.0 (`model_executor/model_loader/default_loader.py`) prefers a second copy
    of the weights, which the fingerprint does not cover.
    """
    return "safetensors" if chosen == "auto" and second_copies(folder) else chosen
