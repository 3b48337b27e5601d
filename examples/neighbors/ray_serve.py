r"""bmt-server on Ray Serve: each replica is one server, reached through Ray's proxy.

serve run examples.neighbors.ray_serve:app model=Qwen/Qwen2.5-0.5B-Instruct \
    registry=redis://redis:6379/0 gpus=1 replicas=2

All replicas share the registry, so a mask that is uploaded once is served by each. Arguments:
model, registry, program (`bmt-server` on the PATH), flags (of `bmt-server serve`, one text),
gpus and replicas. Commands show in lists of processes: a registry's password is
BMT_REGISTRY_PASSWORD in the environment of Ray's nodes, not part of its URL. The servers' keys are
the registry's: `bmt-server keys create`, or BMT_ADMIN_KEY.
"""

from __future__ import annotations

import asyncio
import ctypes
import shlex
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import quote

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from yarl import URL

#: Headers of one connection, which a proxy does not pass on (RFC 9110, section 7.6.1).
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
NOT_PASSED = HOP_BY_HOP | {"host", "content-length", "x-forwarded-for"}
PR_SET_PDEATHSIG = 1
START_S = 1200
STOP_S = 150


def end_with_parent() -> None:
    """Have Linux stop this process when its parent is killed, so that no server keeps a GPU."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@serve.deployment(max_ongoing_requests=1000, health_check_period_s=10, health_check_timeout_s=10)
class BmtServer:
    """A replica: `bmt-server serve` as a child process, and a proxy to it."""

    async def __init__(self, command: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._server = await asyncio.create_subprocess_exec(
            *(*command, "--host", "127.0.0.1", "--port", str(port)), preexec_fn=end_with_parent
        )
        # Answers stream for as long as they take; the server has time limits of its own.
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type", "User-Agent"),
        )
        async with asyncio.timeout(START_S):
            while not await self._answers("/readyz"):
                if self._server.returncode is not None:
                    raise RuntimeError(f"bmt-server ended with code {self._server.returncode}")
                await asyncio.sleep(0.5)

    async def check_health(self) -> None:
        """Let Ray replace the replica if the server ended or hangs."""
        if self._server.returncode is not None or not await self._answers("/livez"):
            raise RuntimeError("bmt-server does not answer /livez")

    async def __del__(self) -> None:
        """Let requests end (`--shutdown-timeout`), then stop the server."""
        with suppress(ProcessLookupError):
            self._server.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait(), STOP_S)
        if self._server.returncode is None:
            self._server.kill()
        await self._client.close()

    async def __call__(self, request: Request) -> Response:
        """Pass on the request as it is, and the answer as it comes."""
        headers = [(k, v) for k, v in request.headers.items() if k not in NOT_PASSED]
        if request.client is not None:
            # The server takes it from loopback addresses, for its limits per address.
            headers.append(("x-forwarded-for", request.client.host))
        # As they came: a path that is decoded and encoded again may name another mask.
        raw = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
        query = request.scope["query_string"]
        target = URL(f"{self._url}{(raw + b'?' * bool(query) + query).decode()}", encoded=True)
        try:
            answer = await self._client.request(
                request.method, target, headers=headers, data=await request.body() or None
            )
        except aiohttp.ClientError as error:
            message = f"bmt-server does not answer: {type(error).__name__}; ask again"
            problem = {"message": message, "type": "server_error", "code": "server_unreachable"}
            return JSONResponse({"error": problem}, 503, {"Retry-After": "1"})

        async def body() -> AsyncIterator[bytes]:
            # Leaving early closes the connection, so that the server ends the request.
            async with answer:
                async for piece in answer.content.iter_any():
                    yield piece

        response = StreamingResponse(body(), answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP | {"date", "server"}:  # Ray's proxy has its own
                response.headers.append(name, value)
        return response

    async def _answers(self, path: str) -> bool:
        try:
            async with self._client.get(
                f"{self._url}{path}", timeout=aiohttp.ClientTimeout(5)
            ) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def app(args: dict[str, str]) -> serve.Application:
    """Deployment of the arguments that `serve run` or a configuration file gives."""
    command = [*shlex.split(args.get("program", "bmt-server")), "serve", args["model"]]
    if "registry" in args:
        command += ["--registry", args["registry"]]
    command += shlex.split(args.get("flags", ""))
    return BmtServer.options(
        num_replicas=int(args.get("replicas", 1)),
        ray_actor_options={"num_cpus": 1, "num_gpus": float(args.get("gpus", 0))},
        graceful_shutdown_timeout_s=STOP_S + 10,
    ).bind(command)
