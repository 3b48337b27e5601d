"""A random checkpoint of an 8B Llama's shapes, and random masks of it.

The config is that of Llama 3.1 8B's published shapes; all values are random, so no license applies.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bmt_core
import numpy as np
import torch
from bmt_server.vllm_integration.checkpoint import checkpoint_folder
from safetensors.torch import save_file

from benchmarks.gpu.parts import Job, Keep
from benchmarks.harness.inputs import SPARSITY, positions

BIG = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 2048,
}


def config(tiny: bool) -> dict[str, Any]:
    return {
        **(SMALL if tiny else BIG),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def make(job: Job, keep: Keep) -> None:
    """Write the checkpoint unless it is there, or download the model that the run was given.

    Raises OSError if the disk has no room for it.
    """
    if job.model:
        keep("folder", checkpoint_folder(job.model, None))
        return
    start, folder = time.monotonic(), Path(job.base)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(job.tiny)
    if _made(folder, settings):
        keep("random base", {"seconds": 0.0, "of an earlier run": True, **settings})
        return
    (folder / "config.json").unlink(missing_ok=True)
    size = sum(2 * math.prod(s) for _, shapes in _shards(settings) for s in shapes.values())
    # What an earlier run left is written over.
    free = shutil.disk_usage(folder).free + sum(f.stat().st_size for f in folder.glob("*"))
    if free < 1.05 * size:
        raise OSError(
            f"the random base needs {size / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} are "
            "free; choose another folder by --out"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    index: dict[str, str] = {}
    for name, shapes in _shards(settings):
        tensors = {}
        for key, shape in shapes.items():
            value = torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) > 1:
                drawn = torch.randn(shape, device=device, dtype=torch.bfloat16, generator=generator)
                value = (drawn / math.sqrt(shape[1])).cpu()
            tensors[key], index[key] = value, name
        save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    # Last: a folder with it is whole.
    (folder / "config.json").write_text(json.dumps(settings))
    keep("random base", {"seconds": round(time.monotonic() - start, 1), **settings})


def _made(folder: Path, settings: dict[str, Any]) -> bool:
    """True if an earlier run wrote this base, to its end."""
    try:
        return bool(json.loads((folder / "config.json").read_text()) == settings)
    except (OSError, ValueError):
        return False


def _shards(settings: dict[str, Any]) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """File names, and the shapes of their tensors by name: embeddings, then each layer."""
    hidden, middle = settings["hidden_size"], settings["intermediate_size"]
    heads = settings["num_attention_heads"]
    keys = hidden // heads * settings["num_key_value_heads"]
    ends: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (settings["vocab_size"], hidden),
        "lm_head.weight": (settings["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    yield "model-ends.safetensors", ends
    for i in range(settings["num_hidden_layers"]):
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (middle, hidden),
            "mlp.up_proj.weight": (middle, hidden),
            "mlp.down_proj.weight": (hidden, middle),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        named = {f"model.layers.{i}.{key}": shape for key, shape in shapes.items()}
        yield f"model-{i:02}.safetensors", named


def masks(folder: str, fingerprint: str, seeds: range) -> list[bmt_core.Mask]:
    """Random masks of 0.2 % of each gate, one a seed: the same in every process.

    Gates of one shape share their positions, since drawing those of 32 masks takes a minute.
    """
    gates = bmt_core.geometry(folder)
    return [_mask(gates, fingerprint, seed) for seed in seeds]


def _mask(gates: dict[str, tuple[int, int]], fingerprint: str, seed: int) -> bmt_core.Mask:
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[int, int], np.ndarray] = {}
    for shape in gates.values():
        if shape not in drawn:
            numel = math.prod(shape)
            drawn[shape] = positions(numel, round(numel * SPARSITY), rng)
    tensors = tuple(bmt_core.TensorMask(name, shape, drawn[shape]) for name, shape in gates.items())
    return bmt_core.Mask(bmt_core.Base("benchmark", fingerprint), tensors, {"seed": seed})
