"""Private parts of vLLM and uvicorn that the scheduler and API processes need."""

from __future__ import annotations

from bmt_core.library_contract import Seam

_SCHEDULER = "scheduler/scheduler.py"
_QUEUE = "scheduler/request_queue.py"
_HOOKS = "api/engine_vllm/request_hooks.py"
_BUFFERS = "api/engine_vllm/sampling_buffers.py"
_PROTOCOL = "api/http_protocol.py"

SCHEDULING = (
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
API = (
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
    Seam(
        "vllm.entrypoints.serve.exception_handling.error_response:create_error_response",
        _HOOKS,
        accepts=("message",),
    ),
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
        "vllm.reasoning:ReasoningParserManager",
        "vllm_integration/start/parsers.py",
        attributes=("get_reasoning_parser", "import_reasoning_parser", "list_registered"),
    ),
    Seam(
        "vllm.tool_parsers:ToolParserManager",
        "vllm_integration/start/parsers.py",
        attributes=("get_tool_parser", "import_tool_parser", "list_registered"),
    ),
    Seam(
        "vllm.tokenizers:cached_get_tokenizer",
        "vllm_integration/start/parsers.py",
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
