"""The API's view of the engine (`api/bridge.py`, `Engine`), on vLLM's own objects."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from bmt_server.api.engine_vllm.heartbeat import Pulse
from bmt_server.api.engine_vllm.worker_rpc import EngineWorkers
from bmt_server.api.engine_vllm.worker_sockets import SocketWorkers, Workers
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.worker_channel import socket_path
from bmt_server.settings import Settings


class EngineBridge:
    """Makes masks known to vLLM's serving layer and to its workers.

    `lora_requests` of `OpenAIServingModels` (vLLM 0.32.0, `entrypoints/openai/models/serving.py`)
    is where vLLM's handlers look a request's `model` up; an entry there is all that admission
    needs, since the engine receives the LoRARequest with each request.
    """

    def __init__(
        self, engine_client: Any, serving_models: Any, settings: Settings, pulse: Pulse
    ) -> None:
        self._client = engine_client
        self._models = serving_models
        self._pulse, self._hang_s = pulse, settings.hang_s
        self._workers = _workers(engine_client, Path(settings.stats_dir))
        self._told_to_end = False
        self._hear_of_its_end()

    def _hear_of_its_end(self) -> None:
        # vLLM's flag says "dead" of an engine that was told to end, too.
        end = self._client.shutdown

        def shutdown(*args: Any, **kwargs: Any) -> Any:
            self._told_to_end = True
            return end(*args, **kwargs)

        self._client.shutdown = shutdown

    @property
    def died(self) -> bool:
        """True where the engine has ended by itself."""
        return bool(self._client.errored) and not self._told_to_end

    @property
    def evictions(self) -> asyncio.Queue[int]:
        return self._workers.evictions

    @property
    def base_names(self) -> list[str]:
        return [model.name for model in self._models.base_model_paths]

    @property
    def max_model_len(self) -> int | None:
        return self._client.model_config.max_model_len

    @property
    def model_path(self) -> str:
        return self._models.base_model_paths[0].model_path

    def publish(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        """Let requests name this mask. Idempotent."""
        self._models.lora_requests[internal_name] = LoRARequest(
            lora_name=internal_name, lora_int_id=adapter_id, lora_path=str(source)
        )

    def retire(self, internal_name: str) -> None:
        """New requests can no longer name this mask; running ones keep it."""
        self._models.lora_requests.pop(internal_name, None)

    def resident(self, adapter_id: int) -> bool:
        """True where every worker has the mask in memory."""
        return self._workers.resident(adapter_id)

    async def load(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        """Make a mask resident in every worker, and hold it there. Raises WorkerError.

        Done before a request is admitted, because an error inside a step would end the engine.
        """
        await self._workers.load(adapter_id, internal_name, str(source))

    async def drop(self, adapter_id: int) -> None:
        """No request of this process needs the mask any more."""
        await self._workers.drop(adapter_id)

    async def pin(self, adapter_id: int, pinned: bool) -> None:
        """Exempt a resident mask from eviction, or end that. Raises WorkerError."""
        await self._workers.pin(adapter_id, pinned)

    async def healthy(self) -> bool:
        """False where the engine is dead, or has done nothing for its requests for too long."""
        if 0 < self._hang_s < self._pulse.still_s():
            return False
        try:
            await self._client.check_health()
        except Exception:
            # Any failure of the check is the answer: the engine is not well.
            return False
        return True

    async def close(self) -> None:
        await self._workers.close()


def _workers(engine_client: Any, folder: Path) -> Workers:
    """Direct connections where all workers run on this host, else calls through the engine."""
    parallel = engine_client.vllm_config.parallel_config
    count = parallel.world_size * parallel.data_parallel_size
    if all(socket_path(folder, rank).exists() for rank in range(count)):
        return SocketWorkers(folder, count)
    return EngineWorkers(engine_client)
