"""Stands where vLLM's model runner expects a LoRA manager, and serves masks.

The interface is that of `LRUCacheWorkerLoRAManager` (vLLM 0.32.0, `lora/worker_manager.py`) as
`v1/worker/lora_model_runner_mixin.py` calls it. All decisions are in `worker/`; this file only
translates between vLLM's objects and ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.config import CUDAGraphMode
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

from bmt_server.ipc.stats_files import StatsWriter, WorkerStats
from bmt_server.ipc.worker_channel import socket_path
from bmt_server.settings import Settings
from bmt_server.vllm_integration.patches import BASE_GATE, is_gate
from bmt_server.worker.engine_vllm.mask_fetcher import MaskFetcher
from bmt_server.worker.engine_vllm.mask_loader import Loader
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.masked_delta import Bounds, make
from bmt_server.worker.runtime import MaskRuntime

logger = init_logger("vllm.bmt_server")


class UnsupportedModelError(ValueError):
    """The served model has no gate projections that masks fit; the message says what it has."""


class MaskedLinearMethod(LinearMethodBase):
    """vLLM's own product, then the masked delta of each token's mask."""

    def __init__(self, inner: UnquantizedLinearMethod, handle: int) -> None:
        self.inner = inner
        self.handle = handle

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        self.inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        self.inner.process_weights_after_loading(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.inner.apply(layer, x, bias)
        torch.ops.bmt.masked_delta(y, x, self.handle)
        return y


class MaskManager:
    """One worker's masks behind vLLM's LoRA manager interface."""

    def __init__(self, settings: Settings, vllm_config: Any, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.runtime: MaskRuntime | None = None
        self.loader: Loader | None = None
        self._files: MaskFetcher | None = None
        self._dummies: set[int] = set()

    def create_lora_manager(self, model: torch.nn.Module, vllm_config: Any = None) -> Any:
        """Find the gates, hook the masked delta behind each, and return the model unchanged."""
        fused = [m for m in model.modules() if is_gate(m)]
        gates = [self._gate(layer) for layer in fused]
        self._check_names(gates, vllm_config)
        parallel = vllm_config.parallel_config if vllm_config is not None else None
        rank = getattr(parallel, "rank", 0) or 0
        stats = WorkerStats(pid=os.getpid(), rank=rank)
        bounds = self._bounds(vllm_config)
        runtime = MaskRuntime(
            gates,
            self.settings.mask_mode,
            bounds.memory_bytes,
            stats,
            lambda gates: make(gates, bounds),
        )
        if runtime.mode != "scatter":
            for layer, handle in zip(fused, runtime.handles(), strict=True):
                layer.quant_method = MaskedLinearMethod(layer.quant_method, handle)
        self.runtime = runtime
        self._files = MaskFetcher(self.settings, rank)
        self.loader = Loader(runtime, self._files)
        if self.settings.stats_dir:
            writer = StatsWriter(self.settings.stats_dir, stats.pid, runtime.figures)
            runtime.changed = writer.changed
            self.loader.listen(socket_path(self.settings.stats_dir, _rank_of_all(parallel)))
        logger.info(
            "Masks: mode %s (asked for %s), kernel %s (%s), %d gates of %s, up to %d MiB resident.",
            runtime.mode,
            self.settings.mask_mode,
            stats.kernel,
            runtime.kernel.note,
            len(gates),
            list(gates[0].shape),
            self.settings.mask_memory_bytes >> 20,
        )
        return model

    def _bounds(self, vllm_config: Any) -> Bounds:
        """For kernels that reserve memory; vLLM measures what is left for its KV cache later."""
        memory = self.settings.mask_memory_bytes
        if vllm_config is None:
            return Bounds(memory_bytes=memory)
        compilation = vllm_config.compilation_config
        graphs = compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE)
        return Bounds(
            memory_bytes=memory,
            max_tokens=vllm_config.scheduler_config.max_num_batched_tokens,
            graph_tokens=compilation.max_cudagraph_capture_size or 0 if graphs else 0,
        )

    def _gate(self, layer: Any) -> GateLayer:
        if not isinstance(layer.quant_method, UnquantizedLinearMethod):
            raise UnsupportedModelError(
                f"{layer.prefix} is quantized ({type(layer.quant_method).__name__}); masks need "
                "unquantized gate projections for now. Serve the unquantized checkpoint"
            )
        rows = layer.output_partition_sizes[0]
        rank = layer.tp_rank
        name = layer.prefix.removesuffix("gate_up_proj") + "gate_proj.weight"
        where = (rank * rows, (rank + 1) * rows)
        kept = getattr(layer, BASE_GATE, None)
        if kept is not None:
            return GateLayer(name, where, kept)
        live = layer.weight.data[:rows]
        return GateLayer(name, where, live, live)

    def _check_names(self, gates: list[GateLayer], vllm_config: Any) -> None:
        known = self.settings.gates
        missing = [g.name for g in gates if g.name not in known]
        pipeline = getattr(
            getattr(vllm_config, "parallel_config", None), "pipeline_parallel_size", 1
        )
        if not gates or missing or (len(gates) != len(known) and pipeline == 1):
            raise UnsupportedModelError(
                f"vLLM loaded {len(gates)} gate projections and the checkpoint holds {len(known)}"
                + (f"; {missing[0]} is not among them" if missing else "")
                + ". Masks need a dense model whose blocks have a gate projection "
                "(Llama, Qwen, Mistral and the like)"
            )

    # What vLLM's model runner calls, in its names.

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, lora_request: LoRARequest, rank: int) -> bool:
        """Warm-up adapters delete nothing: tokens that carry one are the base's."""
        self._dummies.add(lora_request.lora_int_id)
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        return False

    def set_active_adapters(self, requests: set[LoRARequest], mapping: Any) -> None:
        """Called before each forward pass with the batch's adapters and each token's id.

        An exception here ends the engine, so whatever can fail was done before admission.
        """
        assert self.runtime is not None
        for request in requests:
            if request.lora_int_id not in self._dummies:
                self._ensure(request)
        tokens = np.asarray(mapping.index_mapping if mapping is not None else (), dtype=np.int64)
        if any(r.lora_int_id in self._dummies for r in requests):
            # A warm-up run, or one that CUDA graphs of steps with masks are captured from.
            self.runtime.rehearse(tokens.size)
        else:
            self.runtime.begin_step(tokens)

    def add_adapter(self, request: Any) -> Any:
        """Make a mask resident ahead of its first use; also the door for the channel's commands.

        A dict is a command that came through the engine (see `rpc.py`). It never raises: vLLM's
        executor stops at the first worker that fails and leaves the others' answers in their
        queues, where its next call would take them for its own.
        """
        assert self.loader is not None
        if not isinstance(request, dict):
            return self._ensure(request)
        if request["do"] == "answer":
            return self.loader.answer(request["n"])
        self.loader.begin(request)
        return None

    def _ensure(self, request: LoRARequest) -> bool:
        assert self.runtime is not None
        if self.runtime.store.knows(request.lora_int_id):
            return False
        assert self._files is not None
        # Offline use, or vLLM dropped all adapters under running requests.
        layout = self._files.open(request.lora_path)
        self.runtime.add(request.lora_int_id, request.lora_name, layout)
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        assert self.runtime is not None
        return self.runtime.remove(adapter_id)

    def remove_all_adapters(self) -> None:
        """vLLM calls this after warm-up, and when the base's weights are replaced.

        Warm-up also means the dummy steps of an idle data-parallel rank (`v1/worker/gpu_worker.py`,
        `execute_dummy_batch`): where there are dummies, they alone go.
        """
        assert self.runtime is not None
        if self._dummies:
            self._dummies.clear()
            return
        for adapter in self.runtime.store.adapters:
            self.runtime.remove(adapter)

    def pin_adapter(self, adapter_id: int) -> bool:
        assert self.runtime is not None
        return self.runtime.store.pin(adapter_id)

    def list_adapters(self) -> set[int]:
        assert self.runtime is not None
        return self.runtime.store.adapters


def _rank_of_all(parallel: Any) -> int:
    """This worker's rank among those of all data-parallel engines."""
    if parallel is None:
        return 0
    return parallel.data_parallel_index * parallel.world_size + parallel.rank
