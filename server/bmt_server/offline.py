"""Masks in offline `vllm.LLM`, without a server or a registry.

    from bmt_server.offline import masked_llm, mask_request
    llm = masked_llm("path/to/model", max_model_len=1024)
    llm.generate(prompts, params, lora_request=mask_request("math.bmt"))

One base model per process. Masks take the place of vLLM's LoRA adapters, so LoRA adapters cannot
be used in the same process.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import os
import tempfile
import warnings
import weakref
from argparse import Namespace
from pathlib import Path
from typing import Any

import bmt_core
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from bmt_server.ipc import mask_flips, stats_folder
from bmt_server.ipc.mask_layout import SUFFIX, write_layout
from bmt_server.ipc.stats_files import WorkerStats
from bmt_server.quantization.family import identify
from bmt_server.settings import MaskMode, Settings, SettingsError
from bmt_server.vllm_integration import cpu_environment, engine_flags, plugin, process_lifetime
from bmt_server.vllm_integration.checkpoint import checkpoint_folder, load_format, served_gates
from bmt_server.vllm_integration.platform_limits import eager_reason, float32_reason
from bmt_server.vllm_integration.start.experts import check_experts
from bmt_server.vllm_integration.start.missing_parts import check_parts
from bmt_server.vllm_integration.start.quantized_bases import check_quantized
from bmt_server.vllm_integration.unsupported_flags import check, count_drafts
from bmt_server.vllm_integration.versions.check import check_version

__all__ = ["flips_request", "mask_request", "masked_llm"]

_ids = itertools.count(1)


def masked_llm(
    model: str,
    *,
    mask_mode: MaskMode = Settings.mask_mode,
    mask_memory_bytes: int = Settings.mask_memory_bytes,
    scatter_quantum_s: float = Settings.scatter_quantum_s,
    scatter_max_wait_s: float = Settings.scatter_max_wait_s,
    stats_dir: str = Settings.stats_dir,
    family: str = Settings.family,
    **vllm_options: Any,
) -> vllm.LLM:
    """Create a `vllm.LLM` that accepts masks. `vllm_options` are vLLM's own.

    family: of a quantized model, the manifest of `bmt-server family` by which masks of the 16-bit
    checkpoint are its own.

    Towers that read images are loaded only with vLLM's `limit_mm_per_prompt`.

    Raises ModelNotFoundError, SettingsError for a checkpoint without gates that masks can act on,
    for a setting out of bounds and for a second base model in one process, UnsupportedFlagError for
    an option that masks cannot work with, VllmVersionError for a vLLM that masks cannot use,
    bmt_core.CheckpointError, and the errors of vLLM.
    """
    check_version(lambda line: warnings.warn(line, stacklevel=4))
    options: dict[str, Any] = {**vllm_options}
    given = Namespace(**options)
    check(given, offline=True, defaults=_defaults())
    count_drafts(given)
    options = {**vars(given), "enable_lora": True}
    if not options.get("limit_mm_per_prompt"):
        options = {**engine_flags.TEXT_ONLY, **options}
    path = checkpoint_folder(model, options.get("revision"))
    check_parts(path)
    gates = served_gates(path)
    check_experts(path, gates.shapes, mode=mask_mode, args=given)
    check_quantized(path, gates, mode=mask_mode, dtype=str(options.get("dtype", "auto")))
    identity = identify(path, gates.precision, quantized=gates.quantized, family=family)
    settings = Settings(
        model_id=model,
        model_path=path,
        fingerprint=identity.base,
        served_fingerprint=identity.own,
        precision=gates.precision,
        quantized=gates.quantized,
        family=family,
        gates=gates.shapes,
        mask_mode=mask_mode,
        mask_memory_bytes=mask_memory_bytes,
        scatter_quantum_s=scatter_quantum_s,
        scatter_max_wait_s=scatter_max_wait_s,
        stats_dir=stats_dir or _stats_folder(),
    )
    present = Settings.from_env()
    if present is not None and present != settings:
        raise SettingsError(
            f"this process already serves masks on {present.model_id!r} in mode "
            f"{present.mask_mode!r}; use one process for each base model and mode"
        )
    process_lifetime.mark_root()
    settings.export_env()
    options |= engine_flags.for_mode(mask_mode, options.get("additional_config"))
    options["load_format"] = load_format(path, str(options.get("load_format", "auto")))
    if options.get("dtype", "auto") == "auto" and float32_reason():
        options["dtype"] = "float32"
    if eager_reason():
        options["enforce_eager"] = True
    _prepare_cpu(settings, options)
    plugin.register()
    llm = vllm.LLM(path, **options)
    _check_requests(llm.llm_engine)
    return llm


def _defaults() -> Namespace:
    """vLLM's options of `vllm.LLM`, each with its default."""
    fields = dataclasses.fields(EngineArgs)
    made = {f.name: f.default_factory() for f in fields if callable(f.default_factory)}
    parameters = inspect.signature(vllm.LLM.__init__).parameters.values()
    named = {p.name: p.default for p in parameters if p.default is not p.empty}
    return Namespace(**{**{f.name: f.default for f in fields}, **made, **named})


def mask_request(mask: bmt_core.Mask | str | os.PathLike[str], name: str = "") -> LoRARequest:
    """The `lora_request` argument of vLLM for a mask or a `.bmt` file.

    Raises bmt_core.BaseMismatch if the mask was trained on another base than the one of
    `masked_llm`, or if that one's weights were replaced, and SettingsError if there is none yet.
    """
    if not isinstance(mask, bmt_core.Mask):
        name = name or Path(mask).stem
        mask = bmt_core.load(mask, expect_base=_settings().fingerprint)
    _check_mask(mask)
    return _request(mask, name, _laid_out(mask))


def flips_request(before: bmt_core.Mask, after: bmt_core.Mask) -> tuple[LoRARequest, int]:
    """The `lora_request` for `after` where workers hold `before`, and the bytes that they read.

    Only what changed is written, and workers derive the mask from that: `before` must be the mask
    that they opened last (`LLMEngine.add_lora`). Raises as `mask_request`.
    """
    _check_mask(after)
    path = Path(_folder().name) / (after.digest + mask_flips.SUFFIX)
    size = mask_flips.write_flips(before, after, path)
    return _request(after, "", path), size


def _settings() -> Settings:
    settings = Settings.from_env()
    if settings is None:
        raise SettingsError("no masked_llm in this process yet; create one before its requests")
    return settings


def _check_mask(mask: bmt_core.Mask) -> None:
    settings = _settings()
    if mask.base.fingerprint != settings.fingerprint:
        raise bmt_core.BaseMismatch(
            f"the mask's base is {mask.base.fingerprint[:12]}… and the served checkpoint is "
            f"{settings.fingerprint[:12]}…; use the checkpoint that the mask was trained on"
        )
    _check_base(settings)


def _request(mask: bmt_core.Mask, name: str, path: Path) -> LoRARequest:
    return LoRARequest(f"{name or 'mask'}@{mask.digest[:12]}", _adapter_id(mask.digest), str(path))


def _check_base(settings: Settings) -> None:
    """Raise BaseMismatch if a worker refuses masks, because its base weights were replaced."""
    for worker in WorkerStats.read_all(settings.stats_dir):
        if worker.base_error and _lives(worker.pid):
            raise bmt_core.BaseMismatch(worker.base_error)


def _lives(pid: int) -> bool:
    """False for a worker of an earlier `masked_llm`, whose statistics stay in the folder."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _check_requests(engine: Any) -> None:
    """Check the base at each request with a mask: an error inside a step would end the engine.

    engine: vLLM's LLMEngine (vLLM 0.32.0, `v1/engine/llm_engine.py`).
    """
    add = engine.add_request

    @functools.wraps(add)
    def add_request(*args: Any, **kwargs: Any) -> Any:
        settings = Settings.from_env()
        masked = any(isinstance(a, LoRARequest) for a in (*args, *kwargs.values()))
        if masked and settings is not None:
            _check_base(settings)
        return add(*args, **kwargs)

    engine.add_request = add_request


def _prepare_cpu(settings: Settings, options: dict[str, Any]) -> None:
    """Set the variables of vLLM's CPU backend, as `bmt-server serve` does."""
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


@functools.cache
def _adapter_id(digest: str) -> int:
    """The number by which vLLM knows a mask."""
    return next(_ids)


@functools.cache
def _stats_folder() -> str:
    """Folder of the workers' statistics, removed when the process ends."""
    folder = stats_folder.make()
    # Finalizers run in reverse order: the engine's, which comes later, precedes this one.
    weakref.finalize(_stats_folder, stats_folder.remove, folder)
    return folder


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Folder of laid-out masks, removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="bmt-masks-")


def _laid_out(mask: bmt_core.Mask) -> Path:
    """File of the mask in the layout that workers read."""
    path = Path(_folder().name) / (mask.digest + SUFFIX)
    if not path.exists():
        write_layout(mask, path)
    return path
