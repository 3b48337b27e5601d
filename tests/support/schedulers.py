"""vLLM's real scheduler classes without an engine: built from configs, fed with fake outputs."""

from __future__ import annotations

from pathlib import Path

import torch
from bmt_server.scheduler.request_queue import mask_of
from bmt_server.scheduler.scheduler import ExclusiveAsyncScheduler, ExclusiveScheduler
from bmt_server.settings import Settings
from vllm import SamplingParams
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    LoRAConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16


class Clock:
    """Virtual time, seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settings(max_wait_s: float = 1.0, quantum_s: float = 0.05) -> Settings:
    return Settings(
        model_id="m",
        model_path="m",
        fingerprint="ab" * 32,
        gates={},
        mask_mode="scatter",
        scatter_max_wait_s=max_wait_s,
        scatter_quantum_s=quantum_s,
    )


def build(
    model: Path,
    *,
    slots: int = 8,
    blocks: int = 1000,
    budget: int = 256,
    kind: type[Scheduler] | str = ExclusiveScheduler,
    policy: str = "fcfs",
    asynchronous: bool = False,
) -> Scheduler:
    """A scheduler of `slots` requests, `blocks` KV blocks of 16 tokens and `budget` tokens a step.

    kind: a class, or a name as vLLM's option `scheduler_cls`. Our schedulers read their settings
    from the environment.
    """
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), dtype="float32", seed=0, max_model_len=512),
        scheduler_config=SchedulerConfig(
            max_num_seqs=slots,
            max_num_batched_tokens=budget,
            max_model_len=512,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            policy=policy,
        ),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=False),
        lora_config=LoRAConfig(max_loras=64, max_cpu_loras=64),
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.async_scheduling = asynchronous or kind is ExclusiveAsyncScheduler
    if isinstance(kind, str):
        config.scheduler_config.scheduler_cls = kind
        kind = config.scheduler_config.get_scheduler_cls()
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    scheduler = kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=False,
    )
    if isinstance(scheduler, ExclusiveScheduler):
        scheduler.clock = Clock()
    return scheduler


def request(
    name: str,
    mask: int,
    prompt: int = 10,
    tokens: int = 4,
    priority: int = 0,
    resumable: bool = False,
) -> Request:
    """A request of `prompt` tokens that wants `tokens` more; mask 0 is the base."""
    lora = LoRARequest(f"m{mask}", mask, "/nowhere") if mask else None
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return Request(
        request_id=name,
        prompt_token_ids=list(range(1, prompt + 1)),
        sampling_params=params,
        pooling_params=None,
        lora_request=lora,
        priority=priority,
        resumable=resumable,
    )


def masks_in(scheduler: Scheduler, output: SchedulerOutput) -> set[int]:
    return {mask_of(scheduler.requests[r]) for r in output.num_scheduled_tokens}


def sampled(scheduler: Scheduler, output: SchedulerOutput) -> ModelRunnerOutput:
    """A model's output: one token for each request whose prompt ends within this step.

    Call it right after the step was scheduled.
    """
    ids = list(output.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={r: i for i, r in enumerate(ids)},
        sampled_token_ids=[[] if scheduler.requests[r].is_prefill_chunk else [7] for r in ids],
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def answer(scheduler: Scheduler, output: SchedulerOutput) -> None:
    """Complete the step before the next one is scheduled."""
    scheduler.update_from_output(output, sampled(scheduler, output))
