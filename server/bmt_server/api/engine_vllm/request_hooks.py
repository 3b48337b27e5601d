"""Figures of each request by mask, taken where vLLM's handlers call the engine client.

One place for all of vLLM's routes: chat, completions, responses and the rest reach the engine
through `EngineClient.generate` (vLLM 0.32.0, `v1/engine/async_llm.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from bmt_server.api.engine_vllm.heartbeat import Pulse


class RequestObserver(Protocol):
    """Takes one finished request. Times are seconds; mask is None for the base model."""

    def __call__(
        self,
        mask: str | None,
        *,
        outcome: str,
        prompt_tokens: int,
        completion_tokens: int,
        ttft_s: float | None,
        e2e_s: float,
    ) -> None: ...


@dataclass(slots=True)
class _Tally:
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    prompt_tokens: int = 0
    completions: dict[int, int] = field(default_factory=dict)

    def see(self, output: Any, cumulative: bool) -> None:
        for completion in output.outputs:
            count = len(completion.token_ids)
            before = 0 if cumulative else self.completions.get(completion.index, 0)
            self.completions[completion.index] = before + count
        if output.prompt_token_ids is not None:
            self.prompt_tokens = len(output.prompt_token_ids)
        if self.first is None and any(self.completions.values()):
            # A request that is not streamed surfaces only when it is done; the engine client's
            # own figure then tells when the first token was there.
            latency = getattr(getattr(output, "metrics", None), "first_token_latency", 0.0)
            self.first = latency or time.perf_counter() - self.started


Admit = Callable[[int], AbstractAsyncContextManager[None]]


def observe(
    engine_client: Any, finished: RequestObserver, admit: Admit, pulse: Pulse | None = None
) -> None:
    """Wrap what vLLM's handlers call of the engine client, `generate` and `encode`.

    admit: entered around each call that names an adapter, with its id: the mask is resident when
    the request goes to the engine. finished: hears of every request to `generate`, however it
    ends. pulse: is told while requests are in the engine, and of each output.
    """
    pulse = pulse or Pulse()
    generate = _admitted(engine_client.generate, admit, pulse)
    engine_client.generate = _observed(generate, finished)
    engine_client.encode = _admitted(engine_client.encode, admit, pulse)


def _admitted(original: Any, admit: Admit, pulse: Pulse) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        lora = kwargs.get("lora_request")
        async with (
            admit(lora.lora_int_id) if lora is not None else nullcontext(),
            # Closed here: the engine drops the request before the mask is let go.
            aclosing(original(*args, **kwargs)) as outputs,
        ):
            with pulse.call():
                async for output in outputs:
                    pulse.beat()
                    yield output

    return call


def _observed(original: Any, finished: RequestObserver) -> Any:
    async def generate(prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        lora = kwargs.get("lora_request")
        kind = getattr(getattr(sampling_params, "output_kind", None), "name", "CUMULATIVE")
        tally, outcome = _Tally(), "cancelled"
        try:
            async with aclosing(original(prompt, sampling_params, *args, **kwargs)) as outputs:
                async for output in outputs:
                    tally.see(output, cumulative=kind != "DELTA")
                    if output.finished:
                        outcome = "ok"
                    yield output
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            finished(
                lora.lora_name if lora is not None else None,
                outcome=outcome,
                prompt_tokens=tally.prompt_tokens,
                completion_tokens=sum(tally.completions.values()),
                ttft_s=tally.first,
                e2e_s=time.perf_counter() - tally.started,
            )

    return generate
