"""All changes to vLLM's behavior, with the file of vLLM that each one depends on (`contract.py`).

`register()` applies them, and only if `bmt-server` or `bmt_server.offline` exported its settings:
in any other vLLM of the environment the plugin does nothing. Every patch is applied once in a
process (`method_patch.py`). The change to seeded requests on the CPU has its code in
`worker_hooks/cpu_seeds.py`; `_patch_lora_manager` applies it.

Public interfaces of vLLM do the rest: flags set the scheduler and what compile caches depend on
(`engine_flags.py`), and plugins add routes (`plugin.py`). Two of them would change what users get:
a logger of `vllm.stat_logger_plugins` runs in every vLLM of the environment and turns statistics on
under `--disable-log-stats`; and `--max-loras` has to be given before vLLM has chosen
`max_num_seqs`.
"""

from __future__ import annotations

from typing import Any

from bmt_core.gates.geometry import expert_of
from prometheus_client import REGISTRY
from vllm.config.lora import LoRAConfig
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.parser.abstract_parser import DelegatingParser
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin
from vllm.v1.worker.worker_base import WorkerBase

from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.api.engine_vllm.step_hooks import StepRecorder
from bmt_server.ipc.worker_channel import WORKER_METHOD
from bmt_server.settings import Settings
from bmt_server.vllm_integration import forced_tools, structured_outputs
from bmt_server.vllm_integration.method_patch import patch_method
from bmt_server.vllm_integration.platform_limits import check_configuration
from bmt_server.vllm_integration.worker_hooks import (
    base_replacement,
    capture_cost,
    cpu_seeds,
    expert_loading,
)
from bmt_server.worker.engine_vllm.gate_projections import is_gate, keep_base_rows
from bmt_server.worker.engine_vllm.mask_manager import MaskManager

logger = init_logger("vllm.bmt_server")

# Seconds that a reader of an idle message queue spins, on the CPU.
SPIN_S = 0.002


def register(settings: Settings, heartbeat: Heartbeat) -> None:
    """Apply all patches in this process."""
    _patch_lora_manager(settings)
    _patch_lora_config()
    _patch_platform()
    _add_worker_method()
    _patch_cpu_weights(settings)
    _patch_experts(settings)
    _patch_stat_logger(settings, heartbeat)
    _patch_spin()
    _patch_structured_outputs()
    if settings.strict_forced_tools:
        _patch_forced_tools()


def _patch_lora_manager(settings: Settings) -> None:
    """Build our mask manager in place of vLLM's LoRA manager.

    vLLM's `v1/worker/lora_model_runner_mixin.py`, `LoRAModelRunnerMixin.load_lora_model`.
    Admission by model name, adapter ids in the batch and separate KV-cache hashes stay vLLM's own
    code. On the CPU it also applies `cpu_seeds.py` (`v1/worker/gpu_model_runner.py`).
    """

    def load_lora_model(_: Any, self: Any, model: Any, vllm_config: Any, device: Any) -> Any:
        if current_platform.is_cpu():
            cpu_seeds.patch_runner(self)
        else:
            capture_cost.report_captures(self, logger.info)
        self.lora_manager = MaskManager.attach(model, settings, vllm_config)
        base_replacement.watch_model(self, model, self.lora_manager.base)
        return model

    base_replacement.watch_workers()
    patch_method(LoRAModelRunnerMixin, "load_lora_model", load_lora_model)


class _WithLora:
    """A model's configuration under which vLLM has LoRA layers for the model."""

    is_lora_supported = True

    def __init__(self, model_config: Any) -> None:
        self._model_config = model_config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model_config, name)


def _patch_lora_config() -> None:
    """Admit models for which vLLM has no LoRA layers, because masks use none of them.

    vLLM's `config/lora.py`, `LoRAConfig.verify_with_model_config`, refuses these from 0.33 on.
    """

    def verify_with_model_config(original: Any, self: Any, model_config: Any) -> Any:
        return original(self, _WithLora(model_config))

    patch_method(LoRAConfig, "verify_with_model_config", verify_with_model_config)


def _add_worker_method() -> None:
    """Give workers a method for commands on masks that come through the engine.

    vLLM's `v1/worker/worker_base.py`, `WorkerBase`. Its contract of endpoint plugins
    (`plugins/endpoint_plugins/interface.py`) asks for such a method in place of other ways into the
    engine. A worker extension class would do the same, but there is one place for it, the user's.
    """

    def run(self: Any, command: dict[str, Any]) -> Any:
        return self.model_runner.lora_manager.run_command(command)

    setattr(WorkerBase, WORKER_METHOD, run)


def _patch_platform() -> None:
    """Adjust the LoRA settings when vLLM completes its configuration.

    vLLM's `platforms/*.py`, `Platform.check_and_update_config`, for two reasons:

    - `max_loras` becomes `max_num_seqs`, which has its final value only there: masks have no
      adapter slots, so no request may wait for one.
    - On the CPU, vLLM disables compilation if LoRA is on; it does not see the LoRA setting.
    """
    owner = next(
        c for c in type(current_platform).__mro__ if "check_and_update_config" in c.__dict__
    )

    def check_and_update_config(original: Any, cls: Any, vllm_config: Any) -> None:
        lora = vllm_config.lora_config
        if lora is None:
            original(cls, vllm_config)
            return
        check_configuration(vllm_config)
        lora.max_loras = lora.max_cpu_loras = vllm_config.scheduler_config.max_num_seqs
        if current_platform.is_cpu():
            vllm_config.lora_config = None
        try:
            original(cls, vllm_config)
        finally:
            vllm_config.lora_config = lora

    patch_method(owner, "check_and_update_config", check_and_update_config)


def _patch_cpu_weights(settings: Settings) -> None:
    """Keep the gate's base rows, which vLLM's CPU backend repacks and drops.

    vLLM's `model_executor/layers/linear.py`,
    `UnquantizedLinearMethod.process_weights_after_loading`. Mode `scatter` leaves the layer
    unpacked, because it writes into the weight; the other modes copy the gate's rows first.
    """
    if not current_platform.is_cpu():
        return

    def process_weights_after_loading(original: Any, self: Any, layer: Any) -> None:
        if is_gate(layer):
            if settings.mask_mode == "scatter":
                layer._cpu_skip_gemm_dispatch = True
            else:
                rows = layer.output_partition_sizes[0]
                keep_base_rows(layer, layer.weight.data[:rows])
        original(self, layer)

    patch_method(
        UnquantizedLinearMethod, "process_weights_after_loading", process_weights_after_loading
    )


def _patch_experts(settings: Settings) -> None:
    """Load experts for masks of their gates; see `worker_hooks/expert_loading.py`.

    vLLM's `model_executor/layers/fused_moe/unquantized_fused_moe_method.py`.
    """
    if any(map(expert_of, settings.gates)):
        expert_loading.install()


def _patch_stat_logger(settings: Settings, heartbeat: Heartbeat) -> None:
    """Take over `vllm:lora_requests_info` and observe each step.

    vLLM's `v1/metrics/loggers.py`, `PrometheusStatLogger`; see `step_hooks.py`.
    """

    def init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        gauge, self.gauge_lora_info = self.gauge_lora_info, None
        if gauge is not None:
            REGISTRY.unregister(gauge)
        self.bmt_steps = StepRecorder(settings, heartbeat)

    def record(original: Any, self: Any, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
        original(self, scheduler_stats, *args, **kwargs)
        self.bmt_steps.record(scheduler_stats)

    patch_method(PrometheusStatLogger, "__init__", init)
    patch_method(PrometheusStatLogger, "record", record)


def _patch_spin() -> None:
    """Shorten the busy wait of message-queue readers on the CPU from 1 s to SPIN_S.

    vLLM's `distributed/device_communicators/shm_broadcast.py`, `SpinCondition`. The spinning
    cores are those that compute the model, of this server and of others on the host.
    """
    if not current_platform.is_cpu():
        return

    def init(
        original: Any,
        self: Any,
        is_reader: bool,
        context: Any,
        notify_address: str,
        busy_loop_s: float = SPIN_S,
    ) -> None:
        original(self, is_reader, context, notify_address, busy_loop_s)

    patch_method(SpinCondition, "__init__", init)


def _patch_structured_outputs() -> None:
    """Name the backend in refusals of structured outputs; see `structured_outputs.py`.

    vLLM's `sampling_params.py`, `SamplingParams._validate_structured_outputs`.
    """
    patch_method(
        SamplingParams, "_validate_structured_outputs", structured_outputs.validate_for_backend
    )


def _patch_forced_tools() -> None:
    """Constrain the arguments of forced tools; see `forced_tools.py`.

    vLLM's `parser/abstract_parser.py`, `DelegatingParser._apply_structural_tag`.
    """
    patch_method(DelegatingParser, "_apply_structural_tag", forced_tools.apply_structural_tag)
