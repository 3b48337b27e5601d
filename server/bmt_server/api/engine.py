"""Interface between the API and the engine; `engine_vllm/engine.py` implements it on vLLM."""

from __future__ import annotations

import asyncio
from typing import Protocol

from bmt_server.ipc.mask_source import MaskSource


class Engine(Protocol):
    """Engine behind the API. `internal_name` is vLLM's name of an adapter, such as `math@3f9c…`."""

    @property
    def evictions(self) -> asyncio.Queue[int]:
        """Ids that left the workers' memory, in order. Its one consumer is the mask lifecycle."""

    @property
    def base_names(self) -> list[str]:
        """Names of the base model that requests may use."""

    @property
    def max_model_len(self) -> int | None:
        """Context length of the base model, tokens."""

    def publish(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        """Let requests name this mask. Idempotent."""

    def retire(self, internal_name: str) -> None:
        """Stop new requests from naming this mask; running ones keep it."""

    def resident(self, adapter_id: int) -> bool:
        """True if every worker has the mask in memory."""

    async def load(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        """Make a mask resident in every worker, and hold it there. Raises WorkerError."""

    async def drop(self, adapter_id: int) -> None:
        """End the hold of `load`; never raises."""

    async def pin(self, adapter_id: int, pinned: bool) -> None:
        """Exempt a resident mask from eviction, or end that. Raises WorkerError."""

    async def healthy(self) -> bool:
        """False if the engine is dead or hung."""

    async def close(self) -> None:
        """Close the connections to the workers."""
