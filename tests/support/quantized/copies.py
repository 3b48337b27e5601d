"""Quantized copies of a checkpoint, written as the quantizers of each format write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import (
    pack_to_int32,
    unpack_from_int32,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    unpack_quantized_values_into_int32,
)
from vllm.scalar_type import scalar_types

GROUP = 32
FP8_BLOCK = (32, 128)
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Tensors = dict[str, torch.Tensor]


def int8(weight: torch.Tensor) -> Tensors:
    """compressed-tensors, symmetric, a scale for each row."""
    scale = (weight.float().abs().amax(1, keepdim=True) / 127).clamp_min(1e-8)
    codes = (weight.float() / scale).round().clamp(-128, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}


def fp8(weight: torch.Tensor) -> Tensors:
    """compressed-tensors, E4M3, a scale for each row."""
    scale = (weight.float().abs().amax(1, keepdim=True) / 448).clamp_min(1e-8)
    return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def fp8_blocks(weight: torch.Tensor) -> Tensors:
    """DeepSeek's form of FP8: a scale for each block."""
    high, wide = FP8_BLOCK
    blocks = weight.float().unflatten(0, (-1, high)).unflatten(2, (-1, wide))
    scale = (blocks.abs().amax((1, 3)) / 448).clamp_min(1e-8)
    spread = scale.repeat_interleave(high, 0).repeat_interleave(wide, 1)
    codes = (weight.float() / spread).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}


def _groups(weight: torch.Tensor, *, zeros: bool) -> tuple[torch.Tensor, ...]:
    """Codes 0 to 15 [R, K], scales [R, G] and zero points [R, G] of 4 bits."""
    parts = weight.float().unflatten(1, (-1, GROUP))
    if zeros:
        low, high = parts.amin(2).clamp_max(0), parts.amax(2).clamp_min(0)
        scale = ((high - low) / 15).clamp_min(1e-8).half().float()
        zero = (-low / scale).round().clamp(0, 15)
    else:
        scale = (parts.abs().amax(2) / 7).clamp_min(1e-8).half().float()
        zero = torch.full_like(scale, 8)
    codes = (parts / scale[..., None] + zero[..., None]).round().clamp(0, 15)
    return codes.flatten(1).int(), scale, zero.int()


def int4(weight: torch.Tensor, *, zeros: bool = False) -> Tensors:
    """compressed-tensors, 4 bits by groups."""
    codes, scale, zero = _groups(weight, zeros=zeros)
    packed = {
        "weight_packed": pack_to_int32((codes - 8).to(torch.int8), 4),
        "weight_scale": scale.to(weight.dtype),
        "weight_shape": torch.tensor(weight.shape),
    }
    if zeros:
        stored = pack_to_int32((zero - 8).to(torch.int8), 4, packed_dim=0)
        packed["weight_zero_point"] = stored.contiguous()
    return packed


def _words(codes: torch.Tensor) -> torch.Tensor:
    """[A, 8 B] codes to int32 [A, B], the first in the lowest bits."""
    shifts = torch.arange(0, 32, 4)
    words = (codes.long().unflatten(1, (-1, 8)) << shifts).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def awq(weight: torch.Tensor) -> Tensors:
    """AutoAWQ's `gemm` version."""
    codes, scale, zero = _groups(weight, zeros=True)

    def words(matrix: torch.Tensor) -> torch.Tensor:
        ordered = matrix.unflatten(1, (-1, 8))[:, :, _AWQ_ORDER].flatten(1)
        return _words(ordered)

    return {
        "qweight": words(codes.t()),
        "qzeros": words(zero.t()),
        "scales": scale.t().half().contiguous(),
    }


def gptq(weight: torch.Tensor) -> Tensors:
    """AutoGPTQ's first version, which stores zeros less one, symmetric."""
    codes, scale, zero = _groups(weight, zeros=False)
    return {
        "qweight": _words(codes).t().contiguous(),
        "qzeros": _words((zero - 1).t()),
        "scales": scale.t().half().contiguous(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def _config(weights: dict[str, Any], inputs: dict[str, Any] | None, form: str) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        },
    }


_TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True, "num_bits": 8}
_ROW = {"strategy": "channel", "symmetric": True, "dynamic": False, "num_bits": 8}
_FOUR = {"strategy": "group", "group_size": GROUP, "dynamic": False, "num_bits": 4, "type": "int"}
#: Each kind's quantizer and its `quantization_config`.
KINDS: dict[str, tuple[Callable[[torch.Tensor], Tensors], dict[str, Any]]] = {
    "int8": (int8, _config({**_ROW, "type": "int"}, {**_TOKEN, "type": "int"}, "int-quantized")),
    "int4": (int4, _config({**_FOUR, "symmetric": True}, None, "pack-quantized")),
    "int4 with zeros": (
        lambda weight: int4(weight, zeros=True),
        _config({**_FOUR, "symmetric": False}, None, "pack-quantized"),
    ),
    "awq": (
        awq,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
        },
    ),
    "gptq": (
        gptq,
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "desc_act": False,
            "sym": True,
            "lm_head": False,
        },
    ),
    "fp8": (
        fp8,
        _config({**_ROW, "type": "float"}, {**_TOKEN, "type": "float"}, "float-quantized"),
    ),
    "fp8 blocks": (
        fp8_blocks,
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": list(FP8_BLOCK),
        },
    ),
}


def quantize(
    source: Path, target: Path, kind: str, change: Callable[[str, Tensors], Tensors] | None = None
) -> Path:
    """Write a quantized copy of a checkpoint of one file, all projections of its layers.

    change: of a projection's tensors, by its module's name.
    """
    shutil.copytree(source, target)
    quantizer, quantization = KINDS[kind]
    tensors: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        module = name.removesuffix(".weight")
        made = quantizer(tensor)
        made = made if change is None else change(module, made)
        tensors |= {f"{module}.{part}": codes.contiguous() for part, codes in made.items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return target


def _of_compressed_tensors(parts: Tensors) -> torch.Tensor:
    """The library's own weights of one gate."""
    if "weight" in parts:
        return dequantize(parts["weight"], parts["weight_scale"], dtype=torch.float32)
    shape = torch.Size(parts["weight_shape"].tolist())
    unpacked = unpack_from_int32(parts["weight_packed"], 4, shape)
    zero = parts.get("weight_zero_point")
    if zero is not None:
        zero = unpack_from_int32(zero, 4, (shape[0], zero.shape[1]), packed_dim=0)
    return dequantize(unpacked, parts["weight_scale"].float(), zero, dtype=torch.float32)


def _of_vllm(parts: Tensors) -> torch.Tensor:
    """Weights of GPTQ by vLLM's own unpacking."""
    scale = parts["scales"].float().repeat_interleave(GROUP, 0)
    unpacked = unpack_quantized_values_into_int32(parts["qweight"], scalar_types.uint4b8, 0)
    return ((unpacked - 8) * scale).t()


def _of_autoawq(parts: Tensors) -> torch.Tensor:
    """Weights of AWQ by AutoAWQ's order: place i of a word is row [0, 2, 4, 6, 1, 3, 5, 7][i]."""
    rows = torch.arange(parts["scales"].shape[1])
    places = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])[rows % 8] * 4

    def codes_of(packed: torch.Tensor) -> torch.Tensor:
        return (packed[:, rows // 8] >> places) & 15

    spread = (codes_of(parts["qzeros"]), parts["scales"])
    zeros, scale = (tensor.repeat_interleave(GROUP, 0) for tensor in spread)
    return ((codes_of(parts["qweight"]) - zeros) * scale.float()).t()


def _by_blocks(parts: Tensors) -> torch.Tensor:
    high, wide = FP8_BLOCK
    spread = parts["weight_scale_inv"].repeat_interleave(high, 0).repeat_interleave(wide, 1)
    return parts["weight"].float() * spread


_LIBRARY = {
    **dict.fromkeys(("int8", "int4", "int4 with zeros", "fp8"), _of_compressed_tensors),
    "awq": _of_autoawq,
    "gptq": _of_vllm,
    "fp8 blocks": _by_blocks,
}


def library_weights(kind: str, parts: Tensors) -> torch.Tensor:
    """A projection's weights in float32, by the library that reads its format."""
    return _LIBRARY[kind](parts)
