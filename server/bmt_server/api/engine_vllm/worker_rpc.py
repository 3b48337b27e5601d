"""Commands to workers that cannot be connected to: through vLLM's engine, on other nodes.

Each call is made between two steps and holds the next one up for as long as it takes, so a
command is only begun by one call, and others ask until all workers have answered. Of evictions
nothing is heard here: an evicted mask is gathered again in the step that uses it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import suppress
from typing import Any

from bmt_server.api.engine_vllm.worker_sockets import ANSWER_S
from bmt_server.ipc.worker_channel import WorkerError

# Between two questions; a step takes about as long.
_PAUSE_S = 0.02


class EngineWorkers:
    """All workers of an engine, wherever they run."""

    def __init__(self, engine_client: Any) -> None:
        self.evictions: asyncio.Queue[int] = asyncio.Queue()  # stays empty, see above
        self._client = engine_client
        # Several API processes ask the same workers: their numbers must not meet.
        self._numbers = itertools.count(os.getpid() << 32)
        self._resident: set[int] = set()

    def resident(self, adapter: int) -> bool:
        return adapter in self._resident

    async def load(self, adapter: int, name: str, source: str) -> None:
        await self._all({"do": "load", "id": adapter, "name": name, "source": source})
        self._resident.add(adapter)

    async def drop(self, adapter: int) -> None:
        self._resident.discard(adapter)
        with suppress(WorkerError):
            await self._all({"do": "drop", "id": adapter})

    async def pin(self, adapter: int, pinned: bool) -> None:
        await self._all({"do": "pin", "id": adapter, "pinned": pinned})

    async def close(self) -> None:
        pass

    async def _all(self, command: dict[str, Any]) -> None:
        number = next(self._numbers)
        deadline = time.monotonic() + ANSWER_S
        answers: list[dict[str, Any] | None] = await self._call({**command, "n": number})
        while any(answer is None for answer in answers):
            if time.monotonic() > deadline:
                raise WorkerError(f"workers did not answer in {ANSWER_S:g} s", "unavailable")
            await asyncio.sleep(_PAUSE_S)
            asked = await self._call({"do": "answer", "n": number})
            # A worker gives its answer once.
            answers = [old or new for old, new in zip(answers, asked, strict=True)]
        for answer in answers:
            if answer and "error" in answer:
                raise WorkerError(answer["error"], answer["code"])

    async def _call(self, command: dict[str, Any]) -> list[Any]:
        return await self._client.collective_rpc("add_lora", args=(command,))
