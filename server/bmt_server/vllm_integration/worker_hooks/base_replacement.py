"""Ways in which vLLM 0.32.0 replaces or hands out base weights, each around `BaseWeights`.

    model.load_weights           trainers' weight updates, `reload_weights`, weight transfer
    runner.reload_weights        `v1/worker/gpu_model_runner.py`, `v1/worker/gpu/model_runner.py`
    Worker.*                     `v1/worker/gpu_worker.py`: weight transfer, sleep, reset, saving
    WorkerBase.apply_model       `v1/worker/worker_base.py`: any function of the model

Code that reaches the model in another way, such as a function of `collective_rpc` that assigns to
`model_runner.model`'s parameters, is seen only if it calls one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import bmt_core
import torch
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerBase

from bmt_server.vllm_integration.method_patch import patch_method
from bmt_server.vllm_integration.unsupported_flags import FINGERPRINTED_FORMATS
from bmt_server.worker.base_weights import BaseWeights

# Methods that change weights of the base; the middle ones are shared with sessions for a drafter.
_REPLACING = ("start_weight_update", "update_weights", "finish_weight_update", "reset_weights")
_OF_A_SESSION = ("update_weights", "finish_weight_update")
# Methods that read the weights, for which a mask in place leaves them.
_READING = ("compute_weight_checksums", "save_sharded_state", "save_tensorized_model")


def watch_model(runner: Any, model: torch.nn.Module, base: BaseWeights) -> None:
    """Hook a model runner and its model, before any request."""
    load: Callable[..., Any] = model.load_weights  # type: ignore[assignment]
    reload: Callable[..., Any] = runner.reload_weights

    @wraps(load)
    def load_weights(*args: Any, **kwargs: Any) -> Any:
        with base.replacement("load_weights"):
            return load(*args, **kwargs)

    @wraps(reload)
    def reload_weights(
        weights_iterator: Any = None,
        weights_path: str | None = None,
        is_checkpoint_format: bool = True,
    ) -> None:
        with base.replacement("reload_weights"):
            reload(weights_iterator, weights_path, is_checkpoint_format)
        config = runner.vllm_config
        known = str(config.load_config.load_format) in FINGERPRINTED_FORMATS
        if weights_iterator is None and is_checkpoint_format and known:
            # A Hub id, or files of another kind: loaded, but not known to be the base.
            with suppress(bmt_core.CheckpointError):
                base.verified(bmt_core.fingerprint(config.model_config.model))

    model.load_weights = load_weights  # type: ignore[assignment]
    runner.reload_weights = reload_weights


def watch_workers() -> None:
    """Hook the classes of workers in this process, once."""
    for name in _REPLACING:
        patch_method(Worker, name, _replace)
    for name in _READING:
        patch_method(Worker, name, _read)
    patch_method(Worker, "sleep", _sleep)
    patch_method(Worker, "wake_up", _wake_up)
    patch_method(Worker, "get_model", _get_model)
    patch_method(WorkerBase, "apply_model", _apply_model)


def _base(worker: Any) -> BaseWeights | None:
    """The worker's base weights; None before its model is loaded."""
    manager = vars(worker.model_runner).get("lora_manager")
    base: BaseWeights | None = None if manager is None else manager.base
    return base


def _replace(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    base, name = _base(worker), original.__name__
    if base is None or (name in _OF_A_SESSION and worker._weight_update_is_draft):
        return original(worker, *args, **kwargs)
    with base.replacement(name):
        return original(worker, *args, **kwargs)


def _read(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    base = _base(worker)
    if base is not None:
        base.leave()
    return original(worker, *args, **kwargs)


def _sleep(original: Callable[..., Any], worker: Any, level: int = 1) -> None:
    base = _base(worker)
    if base is None:
        original(worker, level)
    elif level == 1:
        # The weights are kept, as they are now.
        base.leave()
        original(worker, level)
    else:
        with base.replacement(f"sleep of level {level}"):
            original(worker, level)


def _wake_up(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> None:
    original(worker, *args, **kwargs)
    base = _base(worker)
    if base is not None:
        base.forget()


def _get_model(original: Callable[..., Any], worker: Any) -> Any:
    base = _base(worker)
    if base is not None:
        base.expose()
    return original(worker)


def _apply_model(original: Callable[..., Any], worker: Any, fn: Any) -> Any:
    try:
        return original(worker, fn)
    finally:
        base = _base(worker)
        if base is not None:
            base.check_exposed()
