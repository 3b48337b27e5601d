"""Decision on each argument of vLLM that is not refused: passed on, or without effect on masks.

`unsupported_flags.py` has the refused ones. An argument in none of the lists is refused until it is
decided: it may change the weights, the order of a step's tokens or the KV cache's keys.
"""

from __future__ import annotations

#: Arguments that this server sets or takes over itself (`cli/serve.py`).
OURS = frozenset(
    (
        *("help", "model_tag", "model", "config", "middleware", "disable_uvicorn_access_log"),
        *("chat_template", "shutdown_timeout", "max_num_queued_reqs", "language_model_only"),
        *("_api_process_count", "_api_process_rank"),
    )
)

#: Arguments of the HTTP server, of requests and of answers.
FRONTEND = frozenset(
    (
        *("api_server_count", "chat_template_content_format", "trust_request_chat_template"),
        *("trust_request_mm_kwargs", "default_chat_template_kwargs", "response_role"),
        *("return_tokens_as_token_ids", "enable_auto_tool_choice", "tool_call_parser"),
        *("exclude_tools_when_tool_choice_none", "tool_parser_plugin", "tool_strict_level"),
        *("tool_server", "max_log_len", "enable_prompt_tokens_details", "sse_keep_alive_interval"),
        *("enable_per_request_metrics", "enable_server_load_tracking", "enable_log_outputs"),
        *("enable_force_include_usage", "enable_tokenizer_info_endpoint", "enable_log_deltas"),
        *("cohere_is_reasoning_model", "cohere_format", "anthropic_disabled_thinking_effort"),
        *("log_error_stack", "tokens_only", "enable_scale_out", "fingerprint_mode"),
        *("fingerprint_value", "host", "port", "grpc_port", "uds", "uvicorn_log_level"),
        *("disable_access_log_for_endpoints", "allow_credentials", "allowed_origins"),
        *("allowed_methods", "allowed_headers", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs"),
        *("enable_ssl_refresh", "ssl_cert_reqs", "ssl_ciphers", "root_path"),
        *("enable_request_id_headers", "disable_fastapi_docs", "h11_max_incomplete_event_size"),
        *("h11_max_header_count", "enable_offline_docs", "stream_interval", "logging_config"),
        *("log_level", "log_config_file", "show_hidden_metrics_for_version"),
        *("otlp_traces_endpoint", "collect_detailed_traces", "per_request_spec_decode_metrics"),
        *("kv_cache_metrics", "kv_cache_metrics_sample", "custom_histogram_buckets"),
        *("cudagraph_metrics", "enable_layerwise_nvtx_tracing", "enable_mfu_metrics"),
        *("enable_logging_iteration_details", "jit_monitor_mode", "jit_monitor_verbose"),
        *("disable_log_stats", "aggregate_engine_logging", "fail_on_environ_validation"),
        *("enable_log_requests", "reasoning_parser", "reasoning_parser_plugin"),
        *("io_processor_plugin", "renderer_num_workers", "structured_outputs_config"),
        *("reasoning_effort_map", "watchdog_config"),  # vLLM 0.33
        *("reasoning_config", "profiler_config", "watermark_config", "use_tqdm_on_load"),
    )
)

#: Arguments of the model: the same base weights, read or computed in another way.
MODEL = frozenset(
    (
        *("runner", "convert", "tokenizer", "tokenizer_mode", "trust_remote_code", "dtype"),
        *("seed", "hf_config_path", "allowed_local_media_path", "allowed_media_domains"),
        *("revision", "code_revision", "tokenizer_revision", "max_model_len", "enforce_eager"),
        *("enable_return_routed_experts", "return_sampling_mask", "max_logprobs"),
        *("logprobs_mode", "use_fp64_gumbel", "enable_trace_replay", "disable_sliding_window"),
        *("disable_cascade_attn", "skip_tokenizer_init", "enable_prompt_embeds"),
        *("config_format", "hf_token", "hf_overrides", "model_class_overrides"),
        *("pooler_config", "generation_config", "override_generation_config"),
        *("enable_nccl_comm_suspend", "model_impl"),
        *("logits_processors", "download_dir", "safetensors_load_strategy"),
        *("safetensors_prefetch_num_threads", "safetensors_prefetch_block_size"),
        *("model_loader_extra_config", "ignore_patterns", "pt_load_map_location"),
        *("attention_backend", "attention_config", "additional_config", "aux_output_config"),
        *("compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size"),
        *("optimization_level", "performance_mode", "ir_op_priority", "kernel_config"),
        *("enable_flashinfer_autotune", "linear_backend", "enable_flash_late_interaction"),
        *("spec_tokens", "spec_model"),
    )
)

#: Arguments of scheduling, the KV cache and parallel workers: a mask's tokens stay its own.
ENGINE = frozenset(
    (
        *("distributed_executor_backend", "pipeline_parallel_size", "master_addr"),
        *("master_port", "nnodes", "node_rank", "distributed_timeout_seconds"),
        *("cpu_distributed_timeout_seconds", "numa_bind", "numa_bind_nodes", "numa_bind_cpus"),
        *("device_ids", "tensor_parallel_size", "decode_context_parallel_size"),
        *("dcp_comm_backend", "dcp_q_replicate", "dcp_kv_cache_interleave_size"),
        *("cp_kv_cache_interleave_size", "data_parallel_size", "data_parallel_rank"),
        *("data_parallel_start_rank", "data_parallel_size_local", "data_parallel_address"),
        *("data_parallel_rpc_port", "data_parallel_backend", "data_parallel_hybrid_lb"),
        *("data_parallel_external_lb", "enable_batch_sharded_sampling"),
        *("enable_shm_tensor_arena", "dp_sync_interval", "max_parallel_loading_workers"),
        *("disable_nccl_for_dp_synchronization", "ray_workers_use_nsight"),
        *("disable_custom_all_reduce", "worker_extension_cls", "block_size"),
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "kv_cache_dtype"),
        *("num_gpu_blocks_override", "enable_prefix_caching", "prefix_caching_hash_algo"),
        *("prefix_cache_retention_interval", "kv_cache_dtype_skip_layers"),
        *("kv_sharing_fast_prefill", "swa_bounded_replay", "prefix_match_unit"),
        *("kv_offloading_size", "kv_events_config"),
        *("max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_seqs"),
        *("max_num_active_seqs", "max_num_queued_tokens", "long_prefill_token_threshold"),
        *("long_prefill_token_threshold_adaptive", "scheduling_policy"),
        *("enable_chunked_prefill", "scheduler_reserve_full_isl", "watermark"),
        *("prefill_schedule_interval", "disable_hybrid_kv_cache_manager", "async_scheduling"),
    )
)

#: Arguments of parts that models with masks do not have or that masks do not touch: Mamba layers,
#: encoders of images, and settings of features that are refused or off. Those of experts are
#: refused for models that have some (`start/experts.py`), and mean nothing to others.
IRRELEVANT = frozenset(
    (
        *("allow_deprecated_quantization", "enable_hc_sp", "enable_expert_parallel"),
        *("enable_ep_weight_filter", "all2all_backend", "elastic_ep_max_dp_size"),
        *("dbo_decode_token_threshold", "dbo_prefill_token_threshold", "enable_eplb"),
        *("eplb_config", "expert_placement_strategy", "moe_backend", "fault_tolerance_config"),
        *("sparse_indexer_topk_backend", "gdn_prefill_backend", "kda_prefill_backend"),
        *("kda_decode_backend", "mamba_backend", "mamba_ssu_algorithm", "engram_config"),
        *("enable_mamba_cache_stochastic_rounding", "mamba_cache_philox_rounds"),
        *("mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_block_size"),
        *("mamba_config", "enable_mm_processor_stats"),
        *("mamba_cache_mode", "enable_mamba_shared_prefix_checkpoint"),
        *("replayssm_buffer_len", "use_replayssm"),
        *("limit_mm_per_prompt", "enable_mm_embeds", "media_io_kwargs", "mm_processor_kwargs"),
        *("mm_processor_cache_gb", "mm_processor_cache_type", "mm_hasher_algorithm"),
        *("mm_shm_cache_max_object_size_mb", "mm_encoder_only", "mm_encoder_tp_mode"),
        *("mm_encoder_attn_backend", "mm_encoder_attn_dtype", "mm_encoder_fp8_scale_path"),
        *("mm_encoder_fp8_scale_save_path", "mm_encoder_fp8_scale_save_margin"),
        *("interleave_mm_strings", "skip_mm_profiling", "video_pruning_rate"),
        *("video_pruning_method", "mm_tensor_ipc", "mm_processor_device"),
        *("mm_ipc_gpu_memory_gb", "mm_device_do_normalize", "disable_chunked_mm_input"),
        *("ec_transfer_config", "ec_manager_config", "sleep_mode_offload_cudagraph"),
        *("sleep_mode_backend",),  # vLLM 0.33
        *("sleep_preserve_parameter_names", "cpu_offload_params", "offload_num_in_group"),
        *("offload_prefetch_step", "offload_params", "data_parallel_supervisor_port"),
        *("dp_supervisor_probe_interval_s", "dp_supervisor_probe_timeout_s"),
        *("dp_supervisor_probe_failure_threshold", "max_lora_cls_labels"),
    )
)

DECIDED = OURS | FRONTEND | MODEL | ENGINE | IRRELEVANT
