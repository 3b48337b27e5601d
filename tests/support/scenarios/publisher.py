"""The server's API on a real registry, without an engine, in a process that may kill itself.

Started through a fork server that has imported everything, so that hundreds of processes are cheap.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Request
from fastapi.responses import StreamingResponse

from tests.support.replica import Api, replica

# Lines of these files are the publish path: ours, and the connection's to the registry.
PATHS = tuple(
    os.path.join(*parts) + os.sep
    for parts in (("bmt_server", "api"), ("bmt_server", "registry"), ("redis", "asyncio"))
)


class Lines:
    """Counts lines run on the publish path, from an upload's arrival on; kills at one of them.

    kill_at: the line at which the process ends itself by SIGKILL, or None.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._counting = False

    def install(self) -> None:
        sys.settrace(self._call)

    def _call(self, frame: Any, event: str, argument: Any) -> Callable | None:
        name = frame.f_code.co_filename
        if not any(path in name for path in PATHS):
            return None
        if frame.f_code.co_name == "put_mask":
            self._counting = True
        return self._line if self._counting else None

    def _line(self, frame: Any, event: str, argument: Any) -> Callable:
        if event == "line":
            self.count += 1
            if self.count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line


def _completions(api: Api) -> None:
    """A stream of one token of each prompt's choices, as the engine would begin it."""

    async def answer(request: Request) -> StreamingResponse:
        body = await request.json()
        prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
        event = json.dumps({"model": body["model"], "choices": [{"text": "."}]})
        events = [f"data: {event}\n\n"] * (prompts * body.get("n", 1))
        return StreamingResponse(
            iter([*events, "data: [DONE]\n\n"]), media_type="text/event-stream"
        )

    api.app.post("/v1/completions")(answer)


def _serve(
    url: str, folder: str, listening: socket.socket, kill_at: int | None, tell: Any, key: str
) -> None:
    async def run() -> None:
        lines = Lines(kill_at)
        async with replica(url, Path(folder)) as api:
            _completions(api)
            if key:
                await api.state.keys.import_key(key)
            config = uvicorn.Config(api.app, log_level="critical", lifespan="off")
            server = uvicorn.Server(config)

            async def hear() -> None:
                loop = asyncio.get_running_loop()
                while await loop.run_in_executor(None, tell.recv) == "lines?":
                    tell.send(lines.count)
                server.should_exit = True

            hearing = asyncio.create_task(hear())
            if not key:
                lines.install()
            tell.send("ready")
            await server.serve(sockets=[listening])
            await hearing

    asyncio.run(run())


class Publisher:
    """One such process, listening on a port of its own. key: an administrator's, which it adopts.

    Lines are counted, and one may kill it, where there is no such key.
    """

    _context: Any = None

    def __init__(self, url: str, folder: Path, kill_at: int | None = None, key: str = "") -> None:
        if Publisher._context is None:
            Publisher._context = multiprocessing.get_context("forkserver")
            Publisher._context.set_forkserver_preload([__name__])
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        self.key = key
        self.port: int = listening.getsockname()[1]
        self._tell, theirs = Publisher._context.Pipe()
        self.process = Publisher._context.Process(
            target=_serve, args=(url, str(folder), listening, kill_at, theirs, key), daemon=True
        )
        self.process.start()
        listening.close()
        theirs.close()
        assert self._tell.recv() == "ready"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def lines(self) -> int:
        """Lines of the publish path that ran so far."""
        self._tell.send("lines?")
        return self._tell.recv()

    def stop(self) -> None:
        """End it in the way that it is in."""
        if self.process.is_alive():
            self._tell.send("stop")
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
