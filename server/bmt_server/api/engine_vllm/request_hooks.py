"""Hooks around vLLM's engine client: isolation, mask residency, heartbeat and metrics.

One place for all routes of vLLM: chat, completions, responses and the others reach the engine
through `EngineClient.generate` or `encode`, and the engine's process through
`EngineCoreClient.add_request_async` (vLLM's `v1/engine/async_llm.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from bmt_server.api.engine_vllm.contradictions import check_output, check_parameters
from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.api.engine_vllm.sampling_buffers import check_integers, check_sampling_buffers
from bmt_server.api.isolation import current_salt
from bmt_server.api.response.refusals import note
from bmt_server.api.usage.caller import Caller, current_caller
from bmt_server.errors import ApiError, BadRequest, from_status

# Context manager for one engine call with an adapter, by adapter id.
AdapterHold = Callable[[int], AbstractAsyncContextManager[None]]

MAX_MESSAGE_CHARACTERS = 1000


class RequestObserver(Protocol):
    """Called with each finished request. mask: internal name, None for the base model.

    caller: whose request it was. cached_tokens: those of the prompt that the prefix cache had.
    drafted and accepted: its tokens of speculative decoding.
    """

    def __call__(
        self,
        mask: str | None,
        *,
        caller: Caller | None,
        outcome: str,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        ttft_s: float | None,
        drafted: int = 0,
        accepted: int = 0,
    ) -> None: ...


def install_request_hooks(
    engine_client: Any, on_finished: RequestObserver, hold: AdapterHold, heartbeat: Heartbeat
) -> None:
    """Wrap `generate`, `encode`, the check and the sending of requests of vLLM's engine client.

    hold: entered around each call with an adapter; the mask is resident when the call reaches the
    engine. on_finished: called once for each call, however it ends. heartbeat: tracks the calls,
    with a beat for each output. Whatever route a request comes from, it has the salt of its tenant.
    """
    generate = _with_mask_and_heartbeat(engine_client.generate, hold, heartbeat)
    engine_client.generate = _with_metrics(generate, on_finished)
    encode = _with_mask_and_heartbeat(engine_client.encode, hold, heartbeat)
    engine_client.encode = _with_metrics(encode, on_finished)
    processor = engine_client.input_processor
    processor.assign_request_id = _with_check(processor.assign_request_id)
    core = engine_client.engine_core
    core.add_request_async = _with_salt(core.add_request_async)


def _with_check(original: Any) -> Any:
    # The first call with a request's final parameters, and the last before anything keeps it.
    def assign_request_id(request: Any) -> Any:
        check_integers(request.params)
        check_sampling_buffers(request.params)
        check_parameters(request.params)
        return original(request)

    return assign_request_id


def _with_salt(original: Any) -> Any:
    async def add_request_async(request: Any, *args: Any, **kwargs: Any) -> Any:
        salt = current_salt()
        if salt is not None:
            request.cache_salt = salt
        return await original(request, *args, **kwargs)

    return add_request_async


def _with_mask_and_heartbeat(original: Any, hold: AdapterHold, heartbeat: Heartbeat) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        lora = kwargs.get("lora_request")
        async with (
            hold(lora.lora_int_id) if lora is not None else nullcontext(),
            # Closed before the hold ends, so that the engine drops the request first.
            aclosing(original(*args, **kwargs)) as outputs,
        ):
            with heartbeat.track_call():
                async for output in outputs:
                    heartbeat.beat()
                    yield output

    return call


def _with_metrics(original: Any, on_finished: RequestObserver) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        lora = kwargs.get("lora_request")
        # The parameters of `encode` have other names and no kind of output.
        sampling = kwargs.get("sampling_params", args[1] if len(args) > 1 else None)
        cumulative = getattr(sampling, "output_kind", None) != RequestOutputKind.DELTA
        tokens, outcome = _TokenCount(), "cancelled"
        # Now, because a call that is abandoned ends in the context of another task.
        caller = current_caller()
        try:
            async with aclosing(original(*args, **kwargs)) as outputs:
                async for output in outputs:
                    tokens.add(output, cumulative)
                    failed = check_output(sampling, output, tokens.completions)
                    if output.finished or failed:
                        outcome = "error" if failed else "ok"
                    yield output
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            outcome = "error"
            if (refusal := _refusal(error)) is not None:
                note(refusal)
            raise
        finally:
            if outcome == "cancelled" and not tokens.prompt:
                # The engine has begun on it, and its first output has not come.
                tokens.prompt = _prompt_length(kwargs.get("prompt", args[0] if args else None))
            on_finished(
                lora.lora_name if lora is not None else None,
                caller=caller,
                outcome=outcome,
                prompt_tokens=tokens.prompt,
                cached_tokens=tokens.cached,
                completion_tokens=sum(tokens.completions.values()),
                ttft_s=tokens.ttft_s,
                drafted=tokens.drafted,
                accepted=tokens.accepted,
            )

    return call


def _prompt_length(prompt: Any) -> int:
    """Tokens of a prompt that vLLM's routes have rendered; 0 for other forms."""
    ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    return len(ids) if isinstance(ids, list) else 0


def _refusal(error: Exception) -> ApiError | None:
    """The error of a client whose fault it is, as vLLM's responses without streams decide."""
    info = create_error_response(error).error
    if info.code >= 500:
        return None
    # vLLM's own text of a validation error repeats field and value.
    message = str(error.args[0]) if isinstance(error, VLLMValidationError) else info.message
    if info.code == 400:
        return BadRequest(message[:MAX_MESSAGE_CHARACTERS], code="field_invalid", param=info.param)
    return from_status(info.code, message[:MAX_MESSAGE_CHARACTERS], info.param)


@dataclass(slots=True)
class _TokenCount:
    """Tokens of one request and its time to first token, from vLLM's outputs.

    The output of `encode` has no completions.
    """

    started: float = field(default_factory=time.perf_counter)
    ttft_s: float | None = None
    prompt: int = 0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    completions: dict[int, int] = field(default_factory=dict)  # index of a choice -> tokens

    def add(self, output: Any, cumulative: bool) -> None:
        for completion in output.outputs if isinstance(output.outputs, list) else ():
            count = len(completion.token_ids)
            before = 0 if cumulative else self.completions.get(completion.index, 0)
            self.completions[completion.index] = before + count
            # vLLM 0.32.0, `v1/metrics/stats.py`, RequestSpecDecodeMetrics: with a choice's end.
            drafts = completion.spec_decode_metrics
            if drafts is not None:
                self.drafted += drafts.num_draft_tokens
                self.accepted += sum(n * steps for n, steps in enumerate(drafts.histogram))
        if output.prompt_token_ids is not None:
            self.prompt = len(output.prompt_token_ids)
        self.cached = max(self.cached, output.num_cached_tokens or 0)
        if self.ttft_s is None and any(self.completions.values()):
            # A request that is not streamed arrives here only when it is complete; the engine
            # client's own measurement has the time of its first token, unless stats are off.
            measured = output.metrics.first_token_latency if output.metrics is not None else 0.0
            self.ttft_s = measured or time.perf_counter() - self.started
