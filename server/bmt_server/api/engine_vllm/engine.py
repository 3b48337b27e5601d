"""Implementation of the API's engine interface (`api/engine.py`) on vLLM's objects."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.api.engine_vllm.worker_rpc import RpcWorkers
from bmt_server.api.engine_vllm.worker_sockets import SocketWorkers
from bmt_server.api.engine_vllm.workers import Workers
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.worker_channel import socket_path
from bmt_server.settings import Settings


class VllmEngine:
    """Registers masks with vLLM's serving layer and with its workers; implements `Engine`.

    engine_client: vLLM's AsyncLLM. serving_models: its OpenAIServingModels (vLLM's
    `entrypoints/openai/models/serving.py`), in whose `lora_requests` vLLM's handlers look up the
    `model` of a request. An entry there is all that admission needs, because the engine receives
    the LoRARequest with each request.
    """

    def __init__(
        self, engine_client: Any, serving_models: Any, settings: Settings, heartbeat: Heartbeat
    ) -> None:
        self._client = engine_client
        self._models = serving_models
        self._heartbeat, self._hang_s = heartbeat, settings.hang_s
        self._workers = _connect_workers(engine_client, Path(settings.stats_dir))
        self._stopped = False
        self._wrap_shutdown()

    def _wrap_shutdown(self) -> None:
        # vLLM sets `errored` also for an engine that it has shut down itself.
        original = self._client.shutdown

        def shutdown(*args: Any, **kwargs: Any) -> Any:
            self._stopped = True
            return original(*args, **kwargs)

        self._client.shutdown = shutdown

    @property
    def died(self) -> bool:
        """True if the engine has ended without a shutdown."""
        return bool(self._client.errored) and not self._stopped

    @property
    def evictions(self) -> asyncio.Queue[int]:
        return self._workers.evictions

    @property
    def base_names(self) -> list[str]:
        return [model.name for model in self._models.base_model_paths]

    @property
    def max_model_len(self) -> int | None:
        length: int | None = self._client.model_config.max_model_len
        return length

    def publish(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        self._models.lora_requests[internal_name] = LoRARequest(
            lora_name=internal_name, lora_int_id=adapter_id, lora_path=str(source)
        )

    def retire(self, internal_name: str) -> None:
        self._models.lora_requests.pop(internal_name, None)

    def resident(self, adapter_id: int) -> bool:
        return self._workers.resident(adapter_id)

    async def load(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        """Make a mask resident in every worker, and hold it there. Raises WorkerError.

        Called before a request is admitted, because an error inside a step would end the engine.
        """
        await self._workers.load(adapter_id, internal_name, str(source))

    async def drop(self, adapter_id: int) -> None:
        await self._workers.drop(adapter_id)

    async def pin(self, adapter_id: int, pinned: bool) -> None:
        await self._workers.pin(adapter_id, pinned)

    async def healthy(self) -> bool:
        """False if the engine is dead, or silent for `hang_s` while requests wait for it."""
        if 0 < self._hang_s < self._heartbeat.silent_s():
            return False
        try:
            await self._client.check_health()
        except Exception:
            # Any failure of the check means an unhealthy engine.
            return False
        return True

    async def close(self) -> None:
        await self._workers.close()


def _connect_workers(engine_client: Any, folder: Path) -> Workers:
    """Direct connections if all workers run on this host, else calls through the engine."""
    parallel = engine_client.vllm_config.parallel_config
    count = parallel.world_size * parallel.data_parallel_size
    if all(socket_path(folder, rank).exists() for rank in range(count)):
        return SocketWorkers(folder, count)
    return RpcWorkers(engine_client)
