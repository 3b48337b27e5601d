"""The API's view of the engine (`api/bridge.py`, `Engine`), on vLLM's own objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest


class EngineBridge:
    """Makes masks known to vLLM's serving layer and to its engine core.

    `lora_requests` of `OpenAIServingModels` (vLLM 0.32.0, `entrypoints/openai/models/serving.py`)
    is where vLLM's handlers look a request's `model` up; an entry there is all that admission
    needs, since the engine receives the LoRARequest with each request.
    """

    def __init__(self, engine_client: Any, serving_models: Any) -> None:
        self._client = engine_client
        self._models = serving_models

    @property
    def base_names(self) -> list[str]:
        return [model.name for model in self._models.base_model_paths]

    @property
    def max_model_len(self) -> int | None:
        return self._client.model_config.max_model_len

    @property
    def model_path(self) -> str:
        return self._models.base_model_paths[0].model_path

    def publish(self, internal_name: str, adapter_id: int, path: Path) -> None:
        """Let requests name this mask. Idempotent."""
        self._models.lora_requests[internal_name] = _request(internal_name, adapter_id, path)

    def retire(self, internal_name: str) -> None:
        """New requests can no longer name this mask; running ones keep it."""
        self._models.lora_requests.pop(internal_name, None)

    async def preload(self, internal_name: str, adapter_id: int, path: Path) -> None:
        """Map and gather in every worker now. Raises where the mask cannot be made resident.

        Done before a request is admitted, because an error inside a step would end the engine.
        """
        await self._client.add_lora(_request(internal_name, adapter_id, path))

    async def evict(self, adapter_id: int) -> None:
        await self._client.remove_lora(adapter_id)

    async def pin(self, adapter_id: int, pinned: bool) -> None:
        # vLLM can pin an adapter but not unpin one; a negative id means that to our manager.
        await self._client.collective_rpc("pin_lora", args=(adapter_id if pinned else -adapter_id,))

    async def healthy(self) -> bool:
        try:
            await self._client.check_health()
        except Exception:
            # Any failure of the check is the answer: the engine is not well.
            return False
        return True


def _request(internal_name: str, adapter_id: int, path: Path) -> LoRARequest:
    return LoRARequest(lora_name=internal_name, lora_int_id=adapter_id, lora_path=str(path))
