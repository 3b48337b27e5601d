"""Private parts of vLLM that each process needs: workers, the engine and API processes."""

from __future__ import annotations

from bmt_core.library_contract import Seam

_PATCHES = "vllm_integration/patches.py"
_MANAGER = "worker/engine_vllm/mask_manager.py"
_GATES = "worker/engine_vllm/gate_projections.py"
_REPLACEMENT = "vllm_integration/worker_hooks/base_replacement.py"

#: Methods of `MaskManager` that vLLM calls, under the names of its own LoRA manager.
MANAGER = {
    "dummy_lora_cache": ("self",),
    "add_dummy_lora": ("self", "lora_request", "rank"),
    "get_dummy_lora_warmup_rank": ("self", "default_rank"),
    "supports_tower_connector_lora": ("self",),
    "set_active_adapters": ("self", "requests", "mapping"),
    "add_adapter": ("self", "lora_request"),
    "remove_adapter": ("self", "adapter_id"),
    "remove_all_adapters": ("self",),
    "pin_adapter": ("self", "adapter_id"),
    "list_adapters": ("self",),
}
_RUNNERS = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner")
_VLLM_MANAGER = "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager"
_MIXIN = "vllm.v1.worker.lora_model_runner_mixin"

COMMON = (
    Seam(
        f"{_MIXIN}:LoRAModelRunnerMixin.load_lora_model",
        _PATCHES,
        exactly=("self", "model", "vllm_config", "device"),
    ),
    Seam(_MIXIN, _MANAGER, reached=("lora_manager", (*MANAGER, "create_lora_manager"))),
    *(Seam(f"{_VLLM_MANAGER}.{name}", _MANAGER, exactly=p) for name, p in MANAGER.items()),
    Seam("vllm.lora.layers:LoRAMapping", _MANAGER, attributes=("index_mapping",)),
    Seam(
        "vllm.lora.request:LoRARequest",
        _MANAGER,
        attributes=("lora_name", "lora_int_id", "lora_path"),
    ),
    Seam("vllm.v1.worker.worker_base:WorkerBase", _PATCHES, attributes=("model_runner",)),
    Seam(
        "vllm.platforms.interface:Platform.check_and_update_config",
        _PATCHES,
        exactly=("cls", "vllm_config"),
    ),
    Seam(
        "vllm.config:VllmConfig",
        _PATCHES,
        attributes=(
            *("lora_config", "scheduler_config", "parallel_config", "compilation_config"),
            *("additional_config", "model_config"),
        ),
    ),
    Seam("vllm.config.lora:LoRAConfig", _PATCHES, attributes=("max_loras", "max_cpu_loras")),
    Seam(
        "vllm.config.lora:LoRAConfig.verify_with_model_config",
        _PATCHES,
        exactly=("self", "model_config"),
    ),
    Seam(
        "vllm.config:SchedulerConfig",
        _PATCHES,
        attributes=("max_num_seqs", "max_num_batched_tokens", "async_scheduling", "scheduler_cls"),
    ),
    Seam(
        "vllm.config:ParallelConfig",
        _MANAGER,
        attributes=("pipeline_parallel_size", "rank", "world_size", "data_parallel_index"),
    ),
    Seam(
        "vllm.config:CompilationConfig",
        _MANAGER,
        attributes=("cudagraph_mode", "max_cudagraph_capture_size"),
    ),
    Seam("vllm.config:CUDAGraphMode", _MANAGER, attributes=("NONE",)),
    Seam(
        "vllm.model_executor.layers.linear:MergedColumnParallelLinear",
        _GATES,
        attributes=("output_partition_sizes", "tp_rank", "tp_size", "quant_method", "prefix"),
    ),
    Seam("vllm.model_executor.models.utils:WeightsMapper.apply_list", _GATES),
    Seam("vllm.model_executor.layers.linear:LinearMethodBase", _GATES),
    Seam(
        "vllm.model_executor.layers.linear:UnquantizedLinearMethod.apply",
        _GATES,
        exactly=("self", "layer", "x", "bias"),
    ),
    Seam(
        "vllm.v1.metrics.loggers:PrometheusStatLogger",
        _PATCHES,
        attributes=("gauge_lora_info",),
    ),
    Seam(
        "vllm.v1.metrics.loggers:PrometheusStatLogger.record",
        _PATCHES,
        accepts=("self", "scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"),
    ),
    Seam(
        "vllm.v1.metrics.stats:SchedulerStats",
        "api/engine_vllm/step_hooks.py",
        attributes=("waiting_lora_adapters",),
    ),
    Seam(
        "vllm.sampling_params:SamplingParams._validate_structured_outputs",
        "vllm_integration/structured_outputs.py",
        exactly=("self", "model_config", "structured_outputs_config", "tokenizer"),
    ),
    Seam(
        "vllm.sampling_params:StructuredOutputsParams",
        "vllm_integration/structured_outputs.py",
        attributes=("_backend",),
    ),
    Seam(
        "vllm.parser.abstract_parser:DelegatingParser",
        "vllm_integration/forced_tools.py",
        attributes=("tool_strict_level",),
    ),
    Seam(
        "vllm.parser.abstract_parser:DelegatingParser._apply_structural_tag",
        "vllm_integration/forced_tools.py",
        exactly=("self", "request"),
    ),
    Seam(
        "vllm.tool_parsers.tool_strict_level:ToolStrictLevel",
        "vllm_integration/forced_tools.py",
        attributes=("PARAMETER",),
    ),
)
# Ways in which vLLM replaces or hands out base weights.
WEIGHTS = (
    Seam(
        "vllm.v1.worker.gpu_worker:Worker",
        _REPLACEMENT,
        attributes=(
            *("start_weight_update", "update_weights", "finish_weight_update", "reset_weights"),
            *("compute_weight_checksums", "save_sharded_state", "save_tensorized_model"),
            *("wake_up", "model_runner", "_weight_update_is_draft"),
        ),
    ),
    Seam("vllm.v1.worker.gpu_worker:Worker.sleep", _REPLACEMENT, exactly=("self", "level")),
    Seam("vllm.v1.worker.gpu_worker:Worker.get_model", _REPLACEMENT, exactly=("self",)),
    Seam("vllm.v1.worker.worker_base:WorkerBase.apply_model", _REPLACEMENT, exactly=("self", "fn")),
    *(
        Seam(
            f"{runner}:GPUModelRunner.reload_weights",
            _REPLACEMENT,
            exactly=("self", "weights_iterator", "weights_path", "is_checkpoint_format"),
        )
        for runner in _RUNNERS
    ),
    *(
        Seam(
            f"{runner}:GPUModelRunner",
            "vllm_integration/worker_hooks/capture_cost.py",
            attributes=("capture_model", "lora_config", "compilation_config"),
        )
        for runner in _RUNNERS
    ),
    Seam(
        "vllm.v1.worker.gpu.lora_utils:get_lora_capture_cases",
        "vllm_integration/worker_hooks/capture_cost.py",
        accepts=("lora_config", "compilation_config"),
    ),
)
# The CPU backend alone.
CPU = (
    Seam(
        "vllm.model_executor.layers.linear:UnquantizedLinearMethod.process_weights_after_loading",
        _PATCHES,
        exactly=("self", "layer"),
    ),
    Seam("vllm.model_executor.layers.linear", _PATCHES, mentions=("_cpu_skip_gemm_dispatch",)),
    Seam(
        "vllm.distributed.device_communicators.shm_broadcast:SpinCondition.__init__",
        _PATCHES,
        exactly=("self", "is_reader", "context", "notify_address", "busy_loop_s"),
    ),
    Seam(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner",
        "vllm_integration/worker_hooks/cpu_seeds.py",
        attributes=("_sample", "_bookkeeping_sync", "discard_request_mask", "input_batch"),
    ),
    Seam(
        "vllm.v1.worker.gpu_input_batch:InputBatch",
        "vllm_integration/worker_hooks/cpu_seeds.py",
        attributes=("generators", "num_reqs"),
    ),
)
# Models whose experts have masks alone, on the CPU.
_METHOD = (
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:UnquantizedFusedMoEMethod"
)
_LAYER = "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts"
_LOADING = "vllm_integration/worker_hooks/expert_loading.py"
_EXPERT_GATES = "worker/engine_vllm/expert_gates.py"
EXPERTS = (
    Seam(f"{_METHOD}.__init__", _LOADING, exactly=("self", "moe")),
    Seam(f"{_METHOD}.process_weights_after_loading", _LOADING, exactly=("self", "layer")),
    Seam(
        f"{_METHOD}.apply",
        "worker/engine_vllm/masked_experts.py",
        exactly=(
            *("self", "layer", "x", "topk_weights", "topk_ids", "shared_experts"),
            "shared_experts_input",
        ),
    ),
    Seam(f"{_METHOD}", _EXPERT_GATES, attributes=("is_monolithic",)),
    Seam(
        _LAYER,
        _EXPERT_GATES,
        attributes=(
            *("layer_name", "moe_config", "quant_method", "use_ep", "expert_map", "activation"),
            *("swiglu_limit", "apply_router_weight_on_input"),
        ),
    ),
    Seam(
        "vllm.model_executor.layers.fused_moe.config:FusedMoEConfig",
        _EXPERT_GATES,
        attributes=(
            *("is_lora_enabled", "moe_parallel_config", "has_bias", "tp_size", "tp_rank"),
            *("dp_size", "pcp_size"),
        ),
    ),
    Seam(
        "vllm.model_executor.layers.fused_moe.config:FusedMoEParallelConfig",
        _EXPERT_GATES,
        attributes=("enable_eplb", "is_sequence_parallel"),
    ),
)
