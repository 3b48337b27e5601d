"""Engine of `bmt-train grpo --rollouts vllm`: sampled completions by offline vLLM in this process.

Registered in the entry point group `bmt.rollout_engines`, so that the trainer finds it by name and
imports nothing of the server. vLLM's engine runs in the caller's own process, as TRL's `colocate`
mode has it, and stays awake: sleep discards the weights that masks take their values from. Its
memory is bounded from the start instead.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import bmt_core
import numpy as np
import torch
from transformers import AutoConfig
from vllm import SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.platforms import current_platform

from bmt_server.offline import flips_request, mask_request, masked_llm

#: Token ids of a completion, and their log-probabilities before temperature and truncation.
Completion = tuple[list[int], list[float]]

_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
# Tokens of a block of vLLM's KV cache on the CPU, of which a sequence fills its last one in part.
_BLOCK = 128


@dataclass(frozen=True)
class Pushed:
    """A push of a mask. size: bytes that were written for the engine; flips: positions in them."""

    size: int
    flips: int


class RolloutEngine:
    """A `vllm.LLM` in this process that samples under the mask that was pushed last.

    model: a checkpoint's folder; dtype: of weights and activations, as torch names it; tokens: of
    the longest prompt with its completion; sequences: in flight; memory: share of the device's
    memory, of a GPU for all that vLLM takes, of a CPU for the KV cache. Raises what `masked_llm`
    raises.
    """

    def __init__(
        self, model: str, *, dtype: str, tokens: int | None, sequences: int, memory: float
    ) -> None:
        with _kept():
            self._llm = masked_llm(
                model,
                dtype=dtype,
                max_model_len=tokens,
                max_num_seqs=sequences,
                seed=0,
                **_bounds(model, dtype, tokens, sequences, memory),
            )
        self._mask: bmt_core.Mask | None = None
        self._request: Any = None

    @property
    def context(self) -> int:
        """Tokens of a prompt with its completion at most."""
        most: int = self._llm.llm_engine.model_config.max_model_len
        return most

    def push(self, mask: bmt_core.Mask) -> Pushed:
        """Sample under `mask` from now on; the engine gets what changed since the last push."""
        before, held = self._mask, self._request
        if before is not None and before.digest == mask.digest:
            return Pushed(0, 0)
        if before is None:
            self._request = mask_request(mask)
            pushed = Pushed(os.path.getsize(self._request.lora_path), mask.zeros)
        else:
            self._request, size = flips_request(before, mask)
            pushed = Pushed(size, bmt_core.symmetric_difference(before, mask).zeros)
        with _kept():
            self._llm.llm_engine.add_lora(self._request)
            if held is not None:
                self._llm.llm_engine.remove_lora(held.lora_int_id)
        with suppress(OSError):
            os.unlink(self._request.lora_path)  # the worker has read it
        self._mask = mask
        return pushed

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        counts: Sequence[int],
        seeds: Sequence[int],
        limits: Sequence[int],
        sampling: Mapping[str, Any],
    ) -> list[list[Completion]]:
        """`counts` completions of each of `prompts`, under the pushed mask.

        seeds: of each prompt's first completion, the others have the next ones; limits: tokens of a
        completion at most; sampling: further fields of vLLM's SamplingParams.
        """
        params = [
            SamplingParams(
                n=count, seed=seed, max_tokens=limit, logprobs=0, detokenize=False, **sampling
            )
            for count, seed, limit in zip(counts, seeds, limits, strict=True)
        ]
        with _kept():
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts],
                params,
                lora_request=self._request,
                use_tqdm=False,
            )
        return [[_completion(choice) for choice in output.outputs] for output in outputs]

    def close(self) -> None:
        """End the engine, and free its memory."""
        with _kept():
            self._llm.llm_engine.engine_core.shutdown()
            del self._llm
            gc.collect()
            cleanup_dist_env_and_memory()


def _completion(choice: Any) -> Completion:
    ids = list(choice.token_ids)
    return ids, [step[token].logprob for token, step in zip(ids, choice.logprobs, strict=True)]


def _bounds(
    model: str, dtype: str, tokens: int | None, sequences: int, memory: float
) -> dict[str, Any]:
    """vLLM's options that bound the engine's memory on this device."""
    if not current_platform.is_cpu():
        return {"gpu_memory_utilization": memory}
    # By a share vLLM would count the trainer's own memory as the engine's.
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = int(memory * total)
    if tokens is not None:
        row = -(-tokens // _BLOCK) * _BLOCK * _token_bytes(model, dtype)
        bound = min(bound, (sequences + 1) * row)
    # Compiling takes longer on a CPU than most runs' rollouts.
    return {"kv_cache_memory_bytes": bound, "enforce_eager": True}


def _token_bytes(model: str, dtype: str) -> int:
    """Bytes of a token in the KV cache of a model with attention in every layer."""
    config = AutoConfig.from_pretrained(model).get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * kept * size * getattr(torch, dtype).itemsize


@contextmanager
def _kept() -> Iterator[None]:
    """The caller's random numbers, its threads and its variables, whatever vLLM does to them.

    A training run draws the same numbers as if there were no engine. On the CPU vLLM replaces
    `torch.set_num_threads` (vLLM 0.32, `v1/worker/cpu_worker.py`).
    """
    plain, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    set_threads, in_process = torch.set_num_threads, os.environ.get(_IN_PROCESS)
    os.environ[_IN_PROCESS] = "0"
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
        torch.set_num_threads = set_threads
        if in_process is None:
            del os.environ[_IN_PROCESS]
        else:
            os.environ[_IN_PROCESS] = in_process
