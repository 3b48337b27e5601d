"""Files of a base's checkpoint: refused by names and headers, before a weight is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bmt_core.checkpoint_files import weight_files
from safetensors import SafetensorError, safe_open

from bmt_trainer.errors import ModelError, QuantizedModel

# Dtypes of weights that masks apply to, by safetensors name.
_FLOATING = ("F64", "F32", "F16", "BF16")
# Ends of the names of tensors that hold a layer's weight, packed or not.
_WEIGHTS = (".weight", ".qweight", ".weight_packed", "_blocks")
#: The index of a checkpoint's shards.
INDEX = "model.safetensors.index.json"
# What a checkpoint has besides its weights, in lower case: configuration, tokenizer, templates,
# code, license. Weights in other formats and the remains of a training are none of these.
_OTHERS = (
    *("*.json", "*.jinja", "*.py", "*.txt", "*.md", "*.model", "*.tiktoken", "*.bpe"),
    *("tokenizer*", "vocab*", "merges*"),
    *("license*", "licence*", "copying*", "notice*", "readme*", "use_policy*"),
)
_REMAINS = ("*.index.json", "trainer_state.json", "*_results.json", "adapter_config.json")
_NO_WEIGHTS = ("consolidated*", "adapter*", "optimizer*")
# Templates besides the default one, as transformers saves them.
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Parts:
    """The files of a checkpoint's folder, as paths within it.

    weights: the safetensors files that engines load; others: all else that belongs to the
    checkpoint; left_out: what does not, folders with a slash at the end.
    """

    weights: tuple[str, ...]
    others: tuple[str, ...]
    left_out: tuple[str, ...]


def parts_of(folder: Path) -> Parts:
    """Sort the entries of a checkpoint's folder. Raises ModelError.

    Weights are those that the index names; without an index `model.safetensors`, or all shards.
    A copy of the weights in another format, such as Mistral's `consolidated.safetensors`, which
    vLLM prefers, is none of them.
    """
    weights, index = _weights(folder)
    others, left_out = list[str](), list[str]()
    # Hidden ones last, because a line names the first.
    for entry in sorted(folder.iterdir(), key=lambda e: (e.name.startswith("."), e.name)):
        name = entry.name
        if name in weights:
            continue
        if entry.is_dir():
            templates = sorted(entry.glob("*.jinja")) if name == _TEMPLATES else []
            others += [f"{name}/{t.name}" for t in templates if t.is_file()]
            left_out += [] if templates else [f"{name}/"]
        elif not (name in index or _belongs(name)):
            left_out.append(name)
        elif entry.is_file():
            others.append(name)
        else:
            what = "a link to nothing" if entry.is_symlink() else "no regular file"
            raise ModelError(f"{entry} is {what}; download the checkpoint again, or remove it")
    return Parts(tuple(weights), tuple(others), tuple(left_out))


def _belongs(name: str) -> bool:
    lower = name.lower()
    return any(fnmatch(lower, p) for p in _OTHERS) and not any(
        fnmatch(lower, p) for p in (*_REMAINS, "*.safetensors")
    )


def _weights(folder: Path) -> tuple[list[str], list[str]]:
    """(files of weights, index files that name them). Raises ModelError."""
    named = _read_json(folder / "config.json").get("transformers_weights")
    explicit = str(named) if isinstance(named, str) else None
    indexed = explicit if explicit and explicit.endswith(".index.json") else INDEX
    whole = explicit if explicit and explicit.endswith(".safetensors") else "model.safetensors"
    files = [whole] if (folder / whole).is_file() else []
    index = [indexed] if (folder / indexed).is_file() else []
    for name in (explicit, *index):
        if name is not None and os.path.basename(name) != name:
            raise ModelError(f"{folder / 'config.json'} names {name}, which is in another folder")
    if index:
        files += sorted(_shards(folder, indexed) - set(files))
    if not files:
        shards = sorted(p.name for p in folder.glob("*.safetensors") if p.is_file())
        files = [n for n in shards if not any(fnmatch(n.lower(), p) for p in _NO_WEIGHTS)]
    if not files:
        raise ModelError(f"{folder} has no *.safetensors of a model; name a complete checkpoint")
    return files, index


def _shards(folder: Path, index: str) -> set[str]:
    """The files that an index names, all in `folder` itself. Raises ModelError."""
    names = indexed_files(folder / index)
    for name in sorted(names):
        if os.path.basename(name) != name:
            raise ModelError(
                f"{folder / index} names {name}, which is in another folder; a base's weights lie "
                "next to its config.json"
            )
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, which {index} names; download it")
    return names


def indexed_files(index: Path) -> set[str]:
    """The files that an index of shards names. Raises ModelError."""
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{index} has no object weight_map; download it again")
    return {str(name) for name in shards.values()}


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
    if (folder / INDEX).is_file():
        missing = sorted(n for n in indexed_files(folder / INDEX) if not (folder / n).is_file())
        if missing:
            raise ModelError(f"{folder} lacks {missing[0]}, which {INDEX} names; download it")
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
