"""Files of a base's checkpoint: refused by names and headers, before a weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmt_core.checkpoint_files import weight_files
from safetensors import SafetensorError, safe_open

from bmt_trainer.errors import ModelError, QuantizedModel

# Dtypes of weights that masks apply to, by safetensors name.
_FLOATING = ("F64", "F32", "F16", "BF16")
# Ends of the names of tensors that hold a layer's weight, packed or not.
_WEIGHTS = (".weight", ".qweight", ".weight_packed", "_blocks")


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint by its config.json, the names of its files and their headers.

    Loads no weight. Raises QuantizedModel for quantized weights, and ModelError for a folder that
    is no complete checkpoint in safetensors form.
    """
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "it is an adapter: merge it into its base first" if adapter else "name the folder of"
        raise ModelError(
            f"{folder} has no config.json; {what}{'' if adapter else ' a Hugging Face checkpoint'}"
        )
    check_unquantized(folder)
    files = weight_files(folder)
    if not files:
        others = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf")]
        found = f", only {', '.join(sorted(others)[:3])}" if others else ""
        raise ModelError(
            f"{folder} has no *.safetensors{found}; convert it: load it with transformers and "
            "save_pretrained it to a new folder"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        named = set(shards.values()) if isinstance(shards, dict) else set()
        if missing := sorted(str(n) for n in named if not (folder / str(n)).is_file()):
            raise ModelError(f"{folder} lacks {missing[0]}, which {index.name} names; download it")
    for file in files:
        _check_dtypes(file)


def check_unquantized(folder: Path) -> None:
    """Raise QuantizedModel for a checkpoint whose settings name a quantizer."""
    path = folder / "config.json"
    method = _quantization(_read_json(path) if path.is_file() else {}) or _old_quantization(folder)
    if method is not None:
        raise QuantizedModel(
            f"{folder} is quantized ({method}), and a mask deletes single weights; use the "
            "unquantized checkpoint that it was made from"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} is no JSON object")
    return values


def _quantization(config: Mapping[str, Any]) -> str | None:
    """The method by which a configuration, or one inside it, says that weights are quantized."""
    for key, value in config.items():
        if key in ("quantization_config", "compression_config") and value:
            method = value.get("quant_method") if isinstance(value, dict) else None
            return str(method or key)
        if isinstance(value, dict) and (inner := _quantization(value)):
            return inner
    return None


def _old_quantization(folder: Path) -> str | None:
    """The settings of a quantizer in a file of its own, as AutoGPTQ and AutoAWQ wrote them."""
    names = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
    return next((name for name in names if (folder / name).is_file()), None)


def _check_dtypes(file: Path) -> None:
    try:
        with safe_open(file, "pt") as tensors:
            kinds = {
                name: tensors.get_slice(name).get_dtype()
                for name in tensors.keys()  # noqa: SIM118
                if name.endswith(_WEIGHTS)
            }
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error})") from None
    for name, kind in kinds.items():
        if kind not in _FLOATING:
            raise QuantizedModel(
                f"{name} in {file} is stored as {kind}, so it is quantized; train on the "
                "unquantized checkpoint that it was made from"
            )
