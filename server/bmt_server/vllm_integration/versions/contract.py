"""All parts of vLLM and uvicorn that this server uses and that are no public interface.

One table for the check at start (`check.py`): the object, the form of it, the file that needs it.
Importing this module imports no vLLM.
"""

from __future__ import annotations

from bmt_core.library_contract import Seam

from bmt_server.vllm_integration.versions.moved import Moved

_PATCHES = "vllm_integration/patches.py"
_MANAGER = "worker/engine_vllm/mask_manager.py"
_GATES = "worker/engine_vllm/gate_projections.py"
_REPLACEMENT = "vllm_integration/worker_hooks/base_replacement.py"
_SCHEDULER = "scheduler/scheduler.py"
_QUEUE = "scheduler/request_queue.py"
_HOOKS = "api/engine_vllm/request_hooks.py"
_BUFFERS = "api/engine_vllm/sampling_buffers.py"
_PROTOCOL = "api/http_protocol.py"

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

# In every process: workers, the engine and API processes.
_EVERYWHERE = (
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
        attributes=("output_partition_sizes", "tp_rank", "quant_method", "prefix"),
    ),
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
_WEIGHTS = (
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
_CPU = (
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
        "vllm_integration/cpu_seeds.py",
        attributes=("_sample", "_bookkeeping_sync", "discard_request_mask", "input_batch"),
    ),
    Seam(
        "vllm.v1.worker.gpu_input_batch:InputBatch",
        "vllm_integration/cpu_seeds.py",
        attributes=("generators", "num_reqs"),
    ),
)
_SCHEDULING = (
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler",
        _SCHEDULER,
        attributes=(
            *("running", "waiting", "kv_holding_waiting", "deferred_waiting", "policy"),
            *("max_num_active_reqs", "max_num_scheduled_tokens", "pause_state", "parallel_config"),
            *("num_waiting_for_streaming_input", "schedule", "update_from_output"),
        ),
    ),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler.add_request",
        _SCHEDULER,
        exactly=("self", "request"),
    ),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler._free_request",
        _SCHEDULER,
        accepts=("self", "request"),
    ),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request",
        _SCHEDULER,
        accepts=("self", "request"),
    ),
    Seam("vllm.v1.core.sched.async_scheduler:AsyncScheduler", _SCHEDULER),
    Seam("vllm.v1.core.sched.request_queue:SchedulingPolicy", _QUEUE),
    Seam("vllm.v1.core.sched.interface:PauseState", _SCHEDULER, attributes=("UNPAUSED",)),
    Seam(
        "vllm.v1.core.sched.output:SchedulerOutput",
        _SCHEDULER,
        attributes=("total_num_scheduled_tokens",),
    ),
    Seam(
        "vllm.v1.request:Request",
        _SCHEDULER,
        attributes=(
            *("request_id", "lora_request", "num_tokens", "num_tokens_with_spec"),
            *("num_output_placeholders", "num_computed_tokens"),
        ),
    ),
    Seam(
        "vllm.v1.core.sched.request_queue:RequestQueue",
        _QUEUE,
        abstract=(
            *("add_request", "pop_request", "peek_request", "prepend_request", "prepend_requests"),
            *("remove_request", "remove_requests", "__bool__", "__len__", "__iter__"),
        ),
    ),
    Seam(
        "vllm.v1.core.sched.request_queue:create_request_queue",
        _QUEUE,
        accepts=("policy",),
    ),
)
_API = (
    Seam(
        "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.attach_router",
        "vllm_integration/plugin.py",
        exactly=("self", "app"),
    ),
    Seam(
        "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.init_state",
        "vllm_integration/plugin.py",
        exactly=("self", "engine_client", "state", "args"),
    ),
    Seam("vllm.v1.metrics.prometheus:get_prometheus_registry", "vllm_integration/plugin.py"),
    Seam(
        "vllm.entrypoints.launchers.launcher",
        "vllm_integration/plugin.py",
        mentions=("app.state.server = ", "app.state.engine_client"),
    ),
    Seam("vllm.entrypoints.cli.serve:ServeSubcommand.cmd", "cli/serve.py", exactly=("args",)),
    Seam(
        "vllm.entrypoints.openai.models.serving:OpenAIServingModels",
        "api/engine_vllm/engine.py",
        attributes=("lora_requests", "base_model_paths"),
    ),
    Seam(
        "vllm.v1.engine.async_llm:AsyncLLM",
        _HOOKS,
        attributes=(
            *("generate", "encode", "errored", "check_health", "input_processor", "engine_core"),
            *("vllm_config", "model_config"),
        ),
    ),
    Seam(
        "vllm.v1.engine.async_llm:AsyncLLM.shutdown",
        "api/engine_vllm/engine.py",
        accepts=("self", "timeout"),
    ),
    Seam(
        "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc",
        "api/engine_vllm/worker_rpc.py",
        accepts=("self", "method", "args"),
    ),
    Seam(
        "vllm.v1.engine.input_processor:InputProcessor.assign_request_id",
        _HOOKS,
        exactly=("request",),
    ),
    Seam(
        "vllm.v1.engine.core_client:EngineCoreClient.add_request_async",
        _HOOKS,
        accepts=("self", "request"),
    ),
    Seam("vllm.v1.engine:EngineCoreRequest", _HOOKS, attributes=("cache_salt",)),
    *(
        Seam(
            f"vllm.v1.worker.gpu.sample.{state}.add_request",
            _BUFFERS,
            accepts=("self", "req_idx", "sampling_params"),
        )
        for state in (
            "logit_bias:LogitBiasState",
            "bad_words:BadWordsState",
            "logprob:LogprobTokenIdsState",
        )
    ),
    Seam("vllm.exceptions", _BUFFERS, attributes=("VLLMError", "VLLMValidationError")),
    Seam(
        "vllm.tokenizers.registry:resolve_tokenizer_args",
        "vllm_integration/structured_outputs.py",
        accepts=("tokenizer_name", "tokenizer_mode", "revision"),
    ),
    Seam(
        "vllm.renderers.chat_utils:load_chat_template",
        "vllm_integration/chat_template.py",
        accepts=("chat_template",),
    ),
    Seam("uvicorn.config:HTTP_PROTOCOLS", _PROTOCOL),
    Seam(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol",
        _PROTOCOL,
        attributes=(
            *("connection_made", "connection_lost", "data_received", "on_headers_complete"),
            *("on_body", "on_message_complete", "handle_websocket_upgrade", "transport", "url"),
            *("headers", "loop", "flow", "cycle"),
        ),
    ),
    Seam(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.send_400_response",
        _PROTOCOL,
        exactly=("self", "msg"),
    ),
    Seam("uvicorn.protocols.http.flow_control:FlowControl", _PROTOCOL, attributes=("read_paused",)),
    Seam(
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle",
        _PROTOCOL,
        attributes=(
            *("response_started", "response_complete", "disconnected", "message_event"),
            "waiting_for_100_continue",
        ),
    ),
)


def _command_line(moved: Moved) -> tuple[Seam, ...]:
    """Flags of `vllm serve` that `bmt-server serve` reads or sets."""
    return (
        Seam(f"{moved.cli_arguments}:make_arg_parser", "cli/serve.py", accepts=("parser",)),
        Seam(
            f"{moved.cli_arguments}:validate_parsed_serve_args", "cli/serve.py", accepts=("args",)
        ),
        Seam(
            f"{moved.cli_arguments}:FrontendArgs",
            "cli/serve.py",
            attributes=(
                *("middleware", "disable_uvicorn_access_log", "chat_template", "lora_modules"),
                *("host", "api_key"),
            ),
        ),
        Seam(f"{moved.cli_startup}:cli_env_setup", "cli/serve.py", accepts=()),
        Seam("vllm.utils.argparse_utils:FlexibleArgumentParser", "cli/serve.py"),
        Seam(
            "vllm.engine.arg_utils:AsyncEngineArgs",
            "cli/serve.py",
            attributes=(
                *("model", "revision", "served_model_name", "tokenizer", "dtype", "enable_lora"),
                *("enforce_eager", "shutdown_timeout", "max_num_queued_reqs", "nnodes"),
                *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
                *("data_parallel_size_local", "scheduler_cls", "additional_config"),
            ),
        ),
    )


def seams(moved: Moved, *, cpu: bool, all_processes: bool) -> tuple[Seam, ...]:
    """The seams of a vLLM whose modules lie at `moved`.

    cpu: with those of vLLM's CPU backend; all_processes: only those that each process needs.
    """
    common = _EVERYWHERE + _WEIGHTS + (_CPU if cpu else ())
    if all_processes:
        return common
    return common + _SCHEDULING + _API + _command_line(moved)
