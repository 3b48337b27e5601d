"""Model routes of a replica on a stub of vLLM's engine client, under the server's own hooks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.api.engine_vllm.request_hooks import install_request_hooks
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from vllm.sampling_params import RequestOutputKind

from tests.support.replica import Api

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
COUNTING = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")


class StubClient:
    """Stands for AsyncLLM: prompts of `prompt` tokens, of which `cached` were there before.

    Each request generates `completion` tokens; a stream waits for `go` after `pause` of them.
    """

    def __init__(self, prompt: int = 7, cached: int = 4, completion: int = 5) -> None:
        self.prompt, self.cached, self.completion = prompt, cached, completion
        self.pause, self.go = completion, asyncio.Event()
        self.engine_core = SimpleNamespace(add_request_async=self._send)
        self.input_processor = SimpleNamespace(assign_request_id=lambda request: None)

    async def _send(self, request: Any) -> None: ...

    def _output(self, ids: list[int], finished: bool) -> SimpleNamespace:
        completion = SimpleNamespace(
            index=0, token_ids=ids, finish_reason="length", spec_decode_metrics=None
        )
        return self._request(outputs=[completion], finished=finished)

    def _request(self, **more: Any) -> SimpleNamespace:
        ids, cached = [1] * self.prompt, self.cached
        return SimpleNamespace(prompt_token_ids=ids, num_cached_tokens=cached, metrics=None, **more)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **more: Any
    ) -> AsyncIterator[Any]:
        if sampling_params.output_kind != RequestOutputKind.DELTA:
            yield self._output([1] * self.completion, True)
            return
        for at in range(self.completion):
            if at == self.pause:
                await self.go.wait()
            yield self._output([1], at == self.completion - 1)

    async def encode(
        self, prompt: Any, pooling_params: Any, request_id: str, **more: Any
    ) -> AsyncIterator[Any]:
        yield self._request(outputs=SimpleNamespace(data=[0.5]), finished=True)


def install_model_routes(api: Api) -> StubClient:
    """Give a replica the routes that name a model; vLLM's own answers are left out."""
    client = StubClient()
    install_request_hooks(
        client, api.state.meter.request_finished, api.state.lifecycle.hold_for_engine, Heartbeat()
    )

    async def generate(request: Request) -> Response:
        body = await request.json()
        streams = bool(body.get("stream"))
        kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
        parameters = SimpleNamespace(output_kind=kind)
        prompt = {"prompt_token_ids": [1] * client.prompt}
        outputs = client.generate(prompt, parameters, "r")

        async def events() -> AsyncIterator[bytes]:
            async for output in outputs:
                yield f"data: {json.dumps(len(output.outputs[0].token_ids))}\n\n".encode()

        if streams:
            return StreamingResponse(events(), media_type="text/event-stream")
        return JSONResponse([len(o.outputs[0].token_ids) async for o in outputs])

    async def embed(request: Request) -> Response:
        body = await request.json()
        for text in body["input"]:
            async for _ in client.encode({"prompt": text}, SimpleNamespace(), "r"):
                pass
        return JSONResponse({"object": "list"})

    async def count(request: Request) -> Response:
        await request.json()
        return JSONResponse({"count": client.prompt})

    routes = [Route(path, generate, methods=["POST"]) for path in GENERATING]
    routes += [Route(path, count, methods=["POST"]) for path in COUNTING]
    routes.append(Route("/v1/embeddings", embed, methods=["POST"]))
    # Before the replica's own.
    api.app.router.routes[:0] = routes
    return client
