"""Masks in offline `vllm.LLM`: no server, no registry.

    from bmt_server.offline import masked_llm, mask_request
    llm = masked_llm("path/to/model", max_model_len=1024)
    llm.generate(prompts, params, lora_request=mask_request("math.bmt"))

One base model a process: vLLM's LoRA seam carries the masks, so stock LoRA adapters cannot be
used in the same process.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bmt_core

from bmt_server.ipc.mask_layout import SUFFIX, write_layout
from bmt_server.settings import MaskMode, Settings, SettingsError
from bmt_server.vllm_integration import cpu_environment
from bmt_server.vllm_integration.checkpoint import checkpoint_folder

__all__ = ["mask_request", "masked_llm"]

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

_ids = itertools.count(1)
_id_of: dict[str, int] = {}
_folder: tempfile.TemporaryDirectory[str] | None = None


def masked_llm(
    model: str,
    *,
    mask_mode: MaskMode = "auto",
    mask_memory_bytes: int = 1 << 30,
    scatter_quantum_s: float = 0.05,
    scatter_max_wait_s: float = 1.0,
    stats_dir: str = "",
    **vllm_options: Any,
) -> LLM:
    """A `vllm.LLM` that takes masks; `vllm_options` are vLLM's own.

    Raises SettingsError for a second base model in one process, and what vLLM raises.
    """
    path = checkpoint_folder(model, vllm_options.get("revision"))
    settings = Settings(
        model_id=model,
        model_path=path,
        fingerprint=bmt_core.fingerprint(path),
        gates=bmt_core.geometry(path),
        mask_mode=mask_mode,
        mask_memory_bytes=mask_memory_bytes,
        scatter_quantum_s=scatter_quantum_s,
        scatter_max_wait_s=scatter_max_wait_s,
        stats_dir=stats_dir,
    )
    present = Settings.from_env()
    if present is not None and present != settings:
        raise SettingsError(
            f"this process already serves masks on {present.model_id!r} in mode "
            f"{present.mask_mode!r}; use one process for each base model and mode"
        )
    settings.export_env()
    from bmt_server.vllm_integration.platform_limits import eager_reason, float32_reason

    options: dict[str, Any] = {"enable_lora": True, **vllm_options}
    if options.get("dtype", "auto") == "auto" and float32_reason():
        options["dtype"] = "float32"
    _prepare_cpu(settings, options)
    from bmt_server.vllm_integration.plugin import register

    if eager_reason():
        options["enforce_eager"] = True
    register()
    from vllm import LLM

    return LLM(path, **options)


def _prepare_cpu(settings: Settings, options: dict[str, Any]) -> None:
    """Set what vLLM's CPU backend wants, as `bmt-server serve` does; see `cpu_environment.py`."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    variables = cpu_environment.recommended(
        os.environ,
        weights_bytes=cpu_environment.weights_bytes(settings.model_path, str(options.get("dtype"))),
        mask_bytes=settings.mask_memory_bytes,
        workers=options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1),
        kv_given="gpu_memory_utilization" in options or "kv_cache_memory_bytes" in options,
    )
    cpu_environment.apply(os.environ, variables)


def mask_request(mask: bmt_core.Mask | str | os.PathLike[str], name: str = "") -> LoRARequest:
    """What to pass as `lora_request` for a mask or a `.bmt` file.

    Raises bmt_core.BaseMismatch where the mask was trained on another base than `masked_llm`'s.
    """
    settings = Settings.from_env()
    if settings is None:
        raise SettingsError("no masked_llm in this process yet; make one before its requests")
    if not isinstance(mask, bmt_core.Mask):
        name = name or Path(mask).stem
        mask = bmt_core.load(mask, expect_base=settings.fingerprint)
    elif mask.base.fingerprint != settings.fingerprint:
        raise bmt_core.BaseMismatch(
            f"the mask's base is {mask.base.fingerprint[:12]}… and the served checkpoint is "
            f"{settings.fingerprint[:12]}…; use the checkpoint that the mask was trained on"
        )
    from vllm.lora.request import LoRARequest

    path = _laid_out(mask)
    adapter = _id_of.setdefault(mask.digest, 0) or next(_ids)
    _id_of[mask.digest] = adapter
    return LoRARequest(f"{name or 'mask'}@{mask.digest[:12]}", adapter, str(path))


def _laid_out(mask: bmt_core.Mask) -> Path:
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="bmt-masks-")
    path = Path(_folder.name) / (mask.digest + SUFFIX)
    if not path.exists():
        write_layout(mask, path)
    return path
