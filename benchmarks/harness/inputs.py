"""Inputs of the servers: random masks, random LoRA adapters, a masked checkpoint, token ids.

Random, because speed does not depend on which positions a mask holds, only on how many and how
they spread over rows; trained masks spread over rows as random ones do.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import bmt_core
import numpy as np

# The paper's learned sparsity, and what SFT reached on the small model.
SPARSITY = 0.002
SPARSITY_SFT = 0.0045
# Checkpoint shapes of the gates of an 8B model (Llama 3.1): 32 layers of [14336, 4096].
GATES_8B = {f"model.layers.{i}.mlp.gate_proj.weight": (14336, 4096) for i in range(32)}

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def positions(numel: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` distinct positions below numel, sorted, uint32; uniform over all such sets.

    Draws a few too many, drops doubles and then the surplus at random: a permutation of all
    positions would take a hundred times as long at these sparsities.
    """
    if count > numel // 2:
        raise ValueError(f"{count} of {numel} positions; this way of drawing is for sparse masks")
    drawn = np.unique(rng.integers(numel, size=count, dtype=np.uint32))
    while drawn.size < count:
        more = rng.integers(numel, size=count, dtype=np.uint32)
        drawn = np.unique(np.concatenate((drawn, more)))
    if drawn.size > count:
        drawn = np.sort(rng.choice(drawn, count, replace=False))
    return drawn


def random_mask(
    gates: dict[str, tuple[int, int]], fingerprint: str, seed: int, sparsity: float = SPARSITY
) -> bmt_core.Mask:
    """A mask over `gates` with the same share of zeros in each; one digest a seed."""
    rng = np.random.default_rng(seed)
    tensors = tuple(
        bmt_core.TensorMask(name, shape, positions(n, round(n * sparsity), rng))
        for name, shape in gates.items()
        if (n := math.prod(shape))
    )
    return bmt_core.Mask(bmt_core.Base("benchmark", fingerprint), tensors, {"seed": seed})


def masks(model: Path, folder: Path, seeds: Iterable[int], sparsity: float) -> list[Path]:
    """`.bmt` files of random masks of a checkpoint, one a seed; those that exist are kept."""
    gates, fingerprint = bmt_core.geometry(model), bmt_core.fingerprint(model)
    folder.mkdir(parents=True, exist_ok=True)
    files = {seed: folder / f"{fingerprint[:12]}-{sparsity:g}-{seed}.bmt" for seed in seeds}
    missing = [(seed, path) for seed, path in files.items() if not path.exists()]
    if missing:
        # Encoding takes most of a second for ten: thousands are made by all cores.
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            make = partial(_save, gates, fingerprint, sparsity)
            list(pool.map(make, missing, chunksize=16))
    return list(files.values())


def _save(
    gates: dict[str, tuple[int, int]], fingerprint: str, sparsity: float, item: tuple[int, Path]
) -> None:
    seed, path = item
    bmt_core.save(random_mask(gates, fingerprint, seed, sparsity), path)


def lora_adapters(model: Path, folder: Path, count: int, rank: int) -> list[Path]:
    """Folders of random LoRA adapters on all seven projections, in peft's file format, bf16.

    Values are small and random: what an engine does with an adapter does not depend on them.
    """
    import torch
    from safetensors.torch import save_file

    shapes = projection_shapes(model)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "benchmark",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(PROJECTIONS),
    }
    files = []
    for seed in range(count):
        path = folder / f"r{rank}-{seed}"
        files.append(path)
        if (path / "adapter_config.json").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, (d_out, d_in) in shapes.items():
            for part, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
                value = torch.randn(shape, generator=generator) * 0.01
                key = f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"
                tensors[key] = value.bfloat16()
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(config))
    return files


def projection_shapes(model: Path) -> dict[str, tuple[int, int]]:
    """[d_out, d_in] of each of the seven projections, by checkpoint name."""
    from safetensors import safe_open

    shapes = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                if name.endswith(tuple(f".{p}.weight" for p in PROJECTIONS)):
                    d_out, d_in = weights.get_slice(name).get_shape()
                    shapes[name] = (d_out, d_in)
    return shapes


def masked_checkpoint(model: Path, mask: bmt_core.Mask, folder: Path) -> Path:
    """A copy of the checkpoint with the mask's positions zero: one fine-tune, one engine."""
    from safetensors.torch import load_file, save_file

    by_name = {t.name: t for t in mask.tensors}
    shutil.copytree(model, folder, dirs_exist_ok=True)
    for file in sorted(folder.glob("*.safetensors")):
        weights = load_file(file)
        for name, weight in weights.items():
            if name in by_name:
                weight.view(-1)[by_name[name].positions.astype(np.int64)] = 0
        save_file(weights, file, metadata={"format": "pt"})
    return folder
