"""A stand-in for the engine behind the API (`api/engine.py`); the real one is in test_serve."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from bmt_server.ipc.disk_cache import DiskCache
from bmt_server.ipc.mask_layout import LayoutError, map_layout
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.worker_channel import WorkerError


@dataclass
class FakeEngine:
    """Keeps every call; `fail` makes the next loads fail, `slow` makes them wait."""

    folder: Path = Path()
    base_names: list[str] = field(default_factory=lambda: ["tiny"])
    max_model_len: int | None = 128
    evictions: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    published: dict[str, tuple[int, MaskSource]] = field(default_factory=dict)
    seen: list[tuple[str, int, MaskSource]] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    in_memory: set[int] = field(default_factory=set)
    fail: WorkerError | None = None
    slow: asyncio.Event | None = None

    def publish(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        self.published[internal_name] = (adapter_id, source)
        self.seen.append((internal_name, adapter_id, source))

    def retire(self, internal_name: str) -> None:
        self.published.pop(internal_name, None)

    def resident(self, adapter_id: int) -> bool:
        return adapter_id in self.in_memory

    async def load(self, internal_name: str, adapter_id: int, source: MaskSource) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.fail is not None:
            raise self.fail
        try:
            map_layout(self.folder / DiskCache.name(source.digest))
        except LayoutError as error:
            raise WorkerError(str(error), "unavailable") from None
        self.loads.append(adapter_id)
        self.in_memory.add(adapter_id)

    def evict(self, adapter_id: int) -> None:
        self.in_memory.discard(adapter_id)
        self.evictions.put_nowait(adapter_id)

    async def drop(self, adapter_id: int) -> None:
        self.dropped.append(adapter_id)
        self.in_memory.discard(adapter_id)

    async def pin(self, adapter_id: int, pinned: bool) -> None:
        (self.pinned.add if pinned else self.pinned.discard)(adapter_id)

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...
