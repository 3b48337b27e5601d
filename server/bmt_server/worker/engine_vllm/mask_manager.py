"""Masks behind vLLM's LoRA manager interface.

The interface is that of `LRUCacheWorkerLoRAManager` (vLLM's `lora/worker_manager.py`) as
`v1/worker/lora_model_runner_mixin.py` calls it. Decisions are made in `worker/`; this module only
translates between vLLM's objects and ours.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.config import CUDAGraphMode
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from bmt_server.ipc.stats_files import WorkerStats
from bmt_server.ipc.worker_channel import socket_path
from bmt_server.quantization.reader import GateReader
from bmt_server.settings import Settings
from bmt_server.worker.base_weights import BaseWeights
from bmt_server.worker.engine_vllm.expert_gates import expert_layers
from bmt_server.worker.engine_vllm.gate_projections import (
    Dequantized,
    MaskedLinearMethod,
    check_names,
    checkpoint_names,
    fused_projections,
    gate_layer,
)
from bmt_server.worker.engine_vllm.mask_fetcher import MaskFetcher
from bmt_server.worker.engine_vllm.mask_loader import MaskLoader
from bmt_server.worker.engine_vllm.masked_experts import MaskedExperts
from bmt_server.worker.kernels.masked_delta import op_for
from bmt_server.worker.kernels.selection import KernelLimits, make_kernel
from bmt_server.worker.runtime import MaskRuntime

logger = init_logger("vllm.bmt_server")


class MaskManager:
    """Masks of one worker, called by vLLM's model runner under the names of its LoRA manager."""

    def __init__(
        self,
        runtime: MaskRuntime,
        files: MaskFetcher,
        loader: MaskLoader,
        base: BaseWeights | None = None,
    ) -> None:
        """base: of the model; None if nothing replaces its weights."""
        self.base = base
        self._runtime = runtime
        self._files = files
        self._loader = loader
        # Ids of the adapters that vLLM makes up for warm-up runs and graph captures.
        self._dummies: set[int] = set()

    @classmethod
    def attach(cls, model: torch.nn.Module, settings: Settings, vllm_config: Any) -> MaskManager:
        """Build the worker's runtime and loader, and hook the masked delta behind each gate.

        Raises UnsupportedModelError, MaskStoreError if masks do not fit on the device, and
        KernelError.
        """
        parallel = vllm_config.parallel_config
        fused = fused_projections(model)
        names = checkpoint_names(model, settings.gates)
        dequantized = _dequantized(settings, vllm_config) if settings.quantized else None
        gates = [gate_layer(layer, names, settings.gates, dequantized) for layer in fused]
        experts = expert_layers(model, settings.gates)
        gates += [gate for layer in experts for gate in layer.gates]
        check_names(gates, settings, parallel.pipeline_parallel_size)
        limits = kernel_limits(settings, vllm_config)
        stats = WorkerStats(pid=os.getpid(), rank=parallel.rank)
        evictions: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        runtime = MaskRuntime(
            gates,
            settings.mask_mode,
            limits.memory_bytes,
            make_kernel(gates, limits),
            stats=stats,
            stats_dir=settings.stats_dir,
            on_evict=evictions.put,
            all_gates=settings.gates,
        )
        if runtime.mode != "scatter":
            device = gates[0].device
            deltas = iter([op_for(device, handle) for handle in runtime.handles()])
            for projection in fused:
                projection.quant_method = MaskedLinearMethod(projection.quant_method, next(deltas))
            for layer in experts:
                own = [next(deltas) for _ in layer.gates]
                MaskedExperts(layer, own, lambda: runtime.corrects).hook()
        files = MaskFetcher(settings, parallel.rank)
        loader = MaskLoader(runtime, files, evictions)
        if settings.stats_dir:
            loader.listen(socket_path(settings.stats_dir, _global_rank(parallel)))
        logger.info(
            "Masks: mode %s (requested %s), kernel %s (%s), %d gates of %s, up to %d MiB resident.",
            runtime.mode,
            settings.mask_mode,
            stats.kernel,
            runtime.kernel.description,
            len(gates),
            list(gates[0].shape),
            settings.mask_memory_bytes >> 20,
        )
        kept = [gate.base for gate in gates if gate.live is None]
        served = settings.served_fingerprint or settings.fingerprint
        base = BaseWeights(runtime, served, lambda: [*model.parameters(), *kept])
        return cls(runtime, files, loader, base)

    # The names below are those of vLLM's LoRA manager.

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, lora_request: LoRARequest, rank: int) -> bool:
        """Register a warm-up adapter, which zeroes nothing: its tokens use the base weights."""
        self._dummies.add(lora_request.lora_int_id)
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        return False

    def set_active_adapters(self, requests: set[LoRARequest], mapping: Any) -> None:
        """Prepare the next forward pass from the batch's adapters and each token's adapter id.

        An exception here ends the engine, so everything that can fail runs before admission.
        """
        if requests and self.base is not None:
            self.base.check_exposed()
        for request in requests:
            if request.lora_int_id not in self._dummies:
                self._ensure(request)
        tokens = np.asarray(mapping.index_mapping if mapping is not None else (), dtype=np.int64)
        if any(r.lora_int_id in self._dummies for r in requests):
            # A warm-up run, or a capture of the CUDA graphs that steps with masks replay.
            self._runtime.prepare_capture(tokens.size)
        else:
            self._runtime.begin_step(tokens)

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        """Make a mask resident before its first use."""
        return self._ensure(lora_request)

    def run_command(self, command: dict[str, Any]) -> dict[str, Any] | None:
        """Start a command that came through the engine, or return an earlier one's answer.

        From `api/engine_vllm/worker_rpc.py`, by the method that `vllm_integration/patches.py` gives
        workers. Never raises: vLLM's executor stops at the first worker that fails and leaves the
        other workers' answers in their queues, and its next call would read them as its own.
        """
        if command["do"] == "answer":
            return self._loader.result(command["n"])
        self._loader.submit(command)
        return None

    def _ensure(self, request: LoRARequest) -> bool:
        if self._runtime.store.knows(request.lora_int_id):
            return False
        # Offline use, or vLLM removed all adapters while requests were running.
        layout = self._files.open(request.lora_path)
        self._runtime.add(request.lora_int_id, request.lora_name, layout)
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        return self._runtime.remove(adapter_id)

    def remove_all_adapters(self) -> None:
        """Forget the dummies if there are any, else all masks.

        vLLM calls this after warm-up, after each dummy step of an idle data-parallel rank
        (`v1/worker/gpu_worker.py`, `execute_dummy_batch`), and when it replaces the base weights.
        """
        if self._dummies:
            self._dummies.clear()
            return
        self._runtime.forget_values()
        for adapter in self._runtime.store.adapters:
            self._runtime.remove(adapter)

    def pin_adapter(self, adapter_id: int) -> bool:
        return self._runtime.store.pin(adapter_id)

    def list_adapters(self) -> set[int]:
        return self._runtime.store.adapters


def kernel_limits(settings: Settings, vllm_config: Any) -> KernelLimits:
    """Sizes for kernels that reserve memory. vLLM sizes its KV cache after the reservation."""
    compilation = vllm_config.compilation_config
    graphs = compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE)
    return KernelLimits(
        memory_bytes=settings.mask_memory_bytes,
        max_tokens=vllm_config.scheduler_config.max_num_batched_tokens,
        graph_tokens=compilation.max_cudagraph_capture_size or 0 if graphs else 0,
    )


def _dequantized(settings: Settings, vllm_config: Any) -> Dequantized:
    """Rows of the checkpoint's gates from its files, for vLLM packs its codes as its kernels do."""
    reader = GateReader(settings.model_path, quantized=True)
    dtype, device = vllm_config.model_config.dtype, vllm_config.device_config.device

    def rows(name: str, first: int, end: int) -> torch.Tensor:
        # Cloned: a view would keep the other rows in memory.
        found = reader.rows(name, first, end).to(device, dtype)
        return found.clone(memory_format=torch.contiguous_format)

    return rows


def _global_rank(parallel: Any) -> int:
    """This worker's rank among the workers of all data-parallel engines."""
    rank: int = parallel.data_parallel_index * parallel.world_size + parallel.rank
    return rank
