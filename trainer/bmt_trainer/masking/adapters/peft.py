"""A mask as an adapter of PEFT: SHiRA with the values -W at the mask's positions.

SHiRA (Bhardwaj et al., 2024; peft 0.21, tuners/shira) adds r·(d_out + d_in) values at fixed places
of each layer, the same r in all of them. W + (-W) is 0 in any floating-point format, so the adapted
weight is the masked one. Places beyond those of the mask get the value 0.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import bmt_core
import numpy as np
import torch
from bmt_core import Mask
from bmt_core.config import arithmetic, config_warning
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bmt_trainer.checkpoint_files import check_unquantized, parts_of
from bmt_trainer.errors import ModelError, QuantizedModel
from bmt_trainer.masking.apply import check_base, check_shape, place_of
from bmt_trainer.masking.new_folder import check_place, new_folder, sync
from bmt_trainer.masking.stored_names import stored_names
from bmt_trainer.models import outline

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_POSITION_BYTES = 8  # row and column, int32 each
# Types that torch negates and adds.
_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class _Layer:
    """A masked layer: its module in the loaded model, its weight's name in the checkpoint.

    shape: [d_out, d_in] of the whole weight; positions: flat, ascending, [zeros], int64.
    """

    module: str
    tensor: str
    shape: tuple[int, int]
    positions: np.ndarray


def write_adapter(
    mask: Mask,
    model_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    base_name: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the mask as a SHiRA adapter of PEFT to `out_dir`; returns `out_dir`.

    base_name: the base in the adapter's configuration; default: the mask's own id. Values have the
    checkpoint's dtype, so the base must be loaded in it, as transformers does by itself. The folder
    is complete or absent, however the call ends. Raises BaseMismatch, QuantizedModel, OutputError,
    and ModelError for a mask of what SHiRA cannot hold: weights that are in no linear layer of
    their own, and too large a share of a layer.
    """
    source, target = Path(model_dir), Path(out_dir)
    check_unquantized(source)
    weights = parts_of(source).weights
    place = check_place(target, source)
    check_base(mask, bmt_core.fingerprint(source))
    if (warning := config_warning(mask.metadata, arithmetic(source))) is not None:
        say(warning)
    layers = _layers(mask, outline(source))
    rank = _rank(layers)
    files = _files(source, weights, [layer.tensor for layer in layers])
    size = sum(rank * sum(layer.shape) * (_POSITION_BYTES + 4) for layer in layers)
    with new_folder(target, place, size) as work:
        tensors: dict[str, torch.Tensor] = {}
        for layer in layers:
            with safe_open(files[layer.tensor], "pt") as file:
                weight = file.get_tensor(layer.tensor).view(layer.shape)
            if weight.dtype not in _DTYPES:
                raise QuantizedModel(
                    f"{layer.tensor} is stored as {weight.dtype}, in which no adapter is added; "
                    "use --to checkpoint"
                )
            values, indices = _shira(layer, weight, rank)
            tensors[f"{_PREFIX}{layer.module}.shira_weight"] = values
            tensors[f"{_PREFIX}{layer.module}.shira_indices"] = indices
        origin = {"bmt_digest": mask.digest, "bmt_base_fingerprint": mask.base.fingerprint}
        save_file(tensors, work / _WEIGHTS, metadata={"format": "pt", **origin})
        config = _config(base_name or mask.base.model_id, rank, layers)
        (work / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in (_WEIGHTS, _CONFIG):
            sync(work / name)
    return target


def _layers(mask: Mask, model: nn.Module) -> list[_Layer]:
    """The layers that the mask zeros something in, in the order of its tensors."""
    tensors = [t for t in mask.tensors if t.zeros]
    stored = stored_names(model, (place_of(t)[0] for t in tensors))
    loaded = {name: parameter for parameter, name in stored.items()}
    modules = dict(model.named_modules())
    found: dict[str, _Layer] = {}
    for tensor in tensors:
        name, first = place_of(tensor)
        module = loaded.get(name, name).removesuffix(".weight")
        layer = modules.get(module)
        if not isinstance(layer, nn.Linear):
            raise ModelError(
                f"{tensor.name} is the weight of no linear layer of its own, which a SHiRA adapter "
                "needs; use --to checkpoint"
            )
        check_shape(tensor, tuple(layer.weight.shape))
        positions = tensor.positions.astype(np.int64) + first
        if (before := found.get(module)) is not None:
            # Several ranges of rows of one weight.
            positions = np.union1d(before.positions, positions)
        shape = (layer.out_features, layer.in_features)
        found[module] = _Layer(module, name, shape, positions)
    if not found:
        raise ModelError("the mask deletes no weight, so its adapter would be empty")
    return list(found.values())


def _rank(layers: list[_Layer]) -> int:
    """The least r by which each layer has r·(d_out + d_in) places for its zeros.

    Raises ModelError if a layer has fewer weights than that.
    """
    rank = max(math.ceil(len(layer.positions) / sum(layer.shape)) for layer in layers)
    for layer in layers:
        places = rank * sum(layer.shape)
        if places > math.prod(layer.shape):
            raise ModelError(
                f"a SHiRA adapter has r·(d_out + d_in) places in each layer, with one r: the most "
                f"zeros of a layer need r = {rank}, by which {layer.module} of {layer.shape} would "
                f"have {places:,} places for its {math.prod(layer.shape):,} weights; use --to "
                "checkpoint"
            )
    return rank


def _shira(layer: _Layer, weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [K] in the dtype of `weight`, and their rows and columns [2, K], int32."""
    count, zeros = rank * sum(layer.shape), layer.positions
    # The first `count` places of the layer hold as many free ones as are missing, or more.
    free = np.setdiff1d(np.arange(count), zeros, assume_unique=True)[: count - len(zeros)]
    places = torch.from_numpy(np.concatenate([zeros, free]))
    values = torch.zeros(count, dtype=weight.dtype)
    values[: len(zeros)] = -weight.reshape(-1)[places[: len(zeros)]]
    indices = torch.stack([places // layer.shape[1], places % layer.shape[1]])
    return values, indices.to(torch.int32)


def _files(source: Path, weights: tuple[str, ...], tensors: list[str]) -> Mapping[str, Path]:
    """The file of each tensor."""
    found: dict[str, Path] = {}
    for name in weights:
        with safe_open(source / name, "pt") as file:
            found |= {tensor: source / name for tensor in file.keys() if tensor in tensors}  # noqa: SIM118
    if missing := [tensor for tensor in tensors if tensor not in found]:
        raise ModelError(f"{source} lacks {missing[0]}; use the complete checkpoint")
    return found


def _config(base: str, rank: int, layers: list[_Layer]) -> dict[str, object]:
    """The adapter's configuration, as PEFT's `ShiraConfig` reads it."""
    return {
        "peft_type": "SHIRA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        # Matched in full, so that no other layer of a similar name is adapted.
        "target_modules": "|".join(re.escape(layer.module) for layer in layers),
        # The places come from the file; a random seed makes those that PEFT draws before equal.
        "mask_type": "random",
        "random_seed": 0,
        "init_weights": True,
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
