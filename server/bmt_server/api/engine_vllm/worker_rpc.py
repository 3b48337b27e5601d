"""Commands to workers on other nodes, sent through vLLM's engine as collective calls.

vLLM makes each call between two steps and delays the next step until the call returns. So one call
only starts a command, and further calls ask until all workers have an answer. Evictions are not
reported on this path: the step that uses an evicted mask loads it again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import suppress
from typing import Any

from bmt_server.api.engine_vllm.workers import ANSWER_TIMEOUT_S
from bmt_server.ipc.worker_channel import WORKER_METHOD, WorkerError

# Between two questions; about the duration of a step.
_POLL_S = 0.02


class RpcWorkers:
    """All workers of an engine, on any node; implements `Workers`."""

    def __init__(self, engine_client: Any) -> None:
        self.evictions: asyncio.Queue[int] = asyncio.Queue()  # stays empty, see above
        self._client = engine_client
        # Several API processes send commands to the same workers: their numbers must differ.
        self._numbers = itertools.count(os.getpid() << 32)
        self._resident: set[int] = set()

    def resident(self, adapter: int) -> bool:
        return adapter in self._resident

    async def load(self, adapter: int, name: str, source: str) -> None:
        await self._run_all({"do": "load", "id": adapter, "name": name, "source": source})
        self._resident.add(adapter)

    async def drop(self, adapter: int) -> None:
        self._resident.discard(adapter)
        with suppress(WorkerError):
            await self._run_all({"do": "drop", "id": adapter})

    async def pin(self, adapter: int, pinned: bool) -> None:
        await self._run_all({"do": "pin", "id": adapter, "pinned": pinned})

    async def close(self) -> None:
        """Do nothing: the engine client is vLLM's."""

    async def _run_all(self, command: dict[str, Any]) -> None:
        """Run a command in every worker. Raises WorkerError for the first that fails."""
        number = next(self._numbers)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        answers: list[dict[str, Any] | None] = await self._call({**command, "n": number})
        while any(answer is None for answer in answers):
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"workers did not answer in {ANSWER_TIMEOUT_S:g} s", "unavailable"
                )
            await asyncio.sleep(_POLL_S)
            newer = await self._call({"do": "answer", "n": number})
            # A worker gives its answer once.
            answers = [old or new for old, new in zip(answers, newer, strict=True)]
        for answer in answers:
            if answer and "error" in answer:
                raise WorkerError(answer["error"], answer["code"])

    async def _call(self, command: dict[str, Any]) -> list[Any]:
        answers: list[Any] = await self._client.collective_rpc(WORKER_METHOD, args=(command,))
        return answers
