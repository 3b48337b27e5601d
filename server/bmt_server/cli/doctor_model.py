"""Lines of `bmt-server doctor MODEL` on a checkpoint, by its configuration and headers alone."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bmt_core
from bmt_core.checkpoint_files import weight_files
from bmt_core.fingerprint import checkpoint_types
from bmt_core.gates.geometry import expert_of, has_expert_gates, in_tower

from bmt_server.cli.finding import Finding
from bmt_server.settings import Settings, SettingsError
from bmt_server.vllm_integration.versions.check import VllmVersionError

# Sparsity of masks that SFT trains, for which memory is shown.
_SPARSITY = 0.005
# Bytes in a worker's memory of a zero with its 16-bit weight, and of a row's end.
_ZERO_BYTES, _ROW_BYTES = 4, 2
_LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,9})\.")
_INDEX = "model.safetensors.index.json"


def findings(model: str) -> Iterator[Finding]:
    """Say if masks can be served on `model`, and their memory.

    model: a folder, or a model of the Hub whose files are in its cache: nothing is downloaded.
    """
    folder = _folder(model)
    if folder is None:
        yield Finding(
            "Model",
            "warn",
            f"{model} is not a folder, and not in the Hub's cache",
            "download it, or ask `bmt-train doctor`, which reads the Hub's headers alone",
        )
        return
    yield _architecture(folder)
    from bmt_server.vllm_integration.checkpoint import served_gates
    from bmt_server.vllm_integration.start.missing_parts import check_parts

    try:
        check_parts(str(folder))
    except SettingsError as error:
        yield Finding("Its class in vLLM", "fail", str(error))
    if missing := _missing_shards(folder):
        yield Finding(
            "Gates",
            "fail",
            f"{folder} lacks {missing[0]}, which {_INDEX} names",
            "download it: `bmt-server serve` does so for a model of the Hub",
        )
        return
    try:
        gates = served_gates(str(folder))
    except (SettingsError, bmt_core.CheckpointError) as error:
        yield Finding("Gates", "fail", str(error))
        return
    shapes = gates.shapes
    yield Finding("Gates", "ok", _shapes(shapes))
    if towers := _towers(folder):
        yield Finding(
            "Towers",
            "ok",
            f"{', '.join(towers)}: left alone by masks and not loaded, for requests are text only",
        )
    if gates.quantized:
        yield _quantized(folder, gates)
    if has_expert_gates(folder):
        yield _experts(folder, shapes)
    yield _masks(shapes)
    yield _weights(sum(file.stat().st_size for file in weight_files(folder)))


def _folder(model: str) -> Path | None:
    """The folder of a model's files on this host, None if there is none."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _missing_shards(folder: Path) -> list[str]:
    """Files that the index of a checkpoint names and that are not there.

    The Hub's cache holds what was asked for, which may be a part of the model.
    """
    shards = _object(folder / _INDEX).get("weight_map")
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    return sorted(name for name in names if not (folder / name).is_file())


def _architecture(folder: Path) -> Finding:
    from bmt_server.vllm_integration.checkpoint import has_class

    listed = _object(folder / "config.json").get("architectures")
    names = listed if isinstance(listed, list) else []
    name = str(names[0]) if names else "no architecture in config.json"
    value = f"{folder}: {name}"
    if has_class(name):
        return Finding("Model", "ok", value)
    return Finding(
        "Model",
        "warn",
        value,
        "this vLLM has no class of its own for it: it may run on transformers' code, more slowly",
    )


def _shapes(gates: Mapping[str, tuple[int, int]]) -> str:
    counts: dict[tuple[int, int], int] = {}
    for shape in gates.values():
        counts[shape] = counts.get(shape, 0) + 1
    shapes = ", ".join(f"{n} of {rows} x {columns}" for (rows, columns), n in counts.items())
    return f"{shapes}{_layers(gates)}; {_weights_of(gates):,} weights that masks may delete"


def _layers(gates: Iterable[str]) -> str:
    """The numbers of the layers that have these gates, as ranges."""
    found = (_LAYER.search(name) for name in gates)
    numbers = sorted({int(match[1]) for match in found if match})
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    said = ", ".join(f"{a} to {b}" if a != b else str(a) for a, b in ranges)
    return f", in layers {said}" if said else ""


def _towers(folder: Path) -> list[str]:
    """Modules of a checkpoint that read images or sound, or join what does to the text model."""
    towers: dict[str, None] = {}
    for name in checkpoint_types(folder):
        parts = name.split(".")
        heads = (".".join(parts[: i + 1]) for i in range(len(parts)))
        if tower := next(filter(in_tower, heads), None):
            towers[tower] = None
    return list(towers)


def _experts(folder: Path, gates: Mapping[str, tuple[int, int]]) -> Finding:
    """Say which gates of experts masks act on, in which modes, and at what cost."""
    from bmt_server.vllm_integration.start.experts import check_experts

    places = [place for name in gates if (place := expert_of(name)) is not None]
    if not places:
        return Finding(
            "Experts",
            "warn",
            "masks delete nothing in layers of experts",
            "where vLLM has more gates than these, as of shared experts, it ends when it has "
            "loaded them; serve a dense model",
        )
    try:
        check_experts(str(folder), gates, mode="auto", args=Namespace())
    except (SettingsError, VllmVersionError) as error:
        return Finding("Experts", "fail", str(error))
    return Finding(
        "Experts",
        "ok",
        f"gates of {len(places)} experts in {len({layer for layer, _ in places})} layers; "
        "--mask-mode auto and delta correct them, scatter is refused; a copy of the gates takes "
        "their size again, and steps with masks are slower than the base's",
    )


def _quantized(folder: Path, gates: Any) -> Finding:
    """Say if this host can serve the codes, and what masks need for it."""
    from bmt_server.vllm_integration.start.quantized_bases import check_quantized

    try:
        check_quantized(str(folder), gates, mode="auto", dtype="auto")
    except SettingsError as error:
        return Finding("Precision", "fail", str(error))
    return Finding(
        "Precision",
        "ok",
        f"{gates.precision}; masks of the 16-bit checkpoint are served on it with --family, a "
        "manifest that `bmt-server family` makes",
    )


def _weights_of(gates: Mapping[str, tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in gates.values())


def _masks(gates: Mapping[str, tuple[int, int]]) -> Finding:
    rows = sum(shape[0] for shape in gates.values())
    one = _ZERO_BYTES * round(_SPARSITY * _weights_of(gates)) + _ROW_BYTES * rows
    held = Settings.mask_memory_bytes // one
    return Finding(
        "Masks",
        "ok",
        f"one that deletes {_SPARSITY:.1%} takes about {one / 2**20:.2g} MiB in a worker; "
        f"--mask-memory-mib {Settings.mask_memory_bytes >> 20} holds {held:,}",
    )


def _weights(size: int) -> Finding:
    """Say if weights of `size` bytes fit."""
    import torch

    from bmt_server.vllm_integration.cpu_environment import free_memory

    if torch.cuda.is_available():
        free, where = torch.cuda.mem_get_info()[0], "the first GPU"
        fix = "--tensor-parallel-size shares them among several GPUs"
    else:
        free, where = free_memory(), "memory"
        fix = "free memory, or serve a smaller model"
    value = (
        f"{size / 2**30:.1f} GiB, and the KV cache comes on top; {where} has "
        f"{free / 2**30:.1f} GiB free"
    )
    if size < free:
        return Finding("Weights", "ok", value)
    return Finding("Weights", "warn", value, fix)
