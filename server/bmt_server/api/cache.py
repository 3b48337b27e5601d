"""Masks laid out on local disk, by tenant and digest: what the workers map."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import bmt_core

from bmt_server.api.errors import Unavailable
from bmt_server.api.registry import Registry
from bmt_server.api.schemas import Version
from bmt_server.wire import SUFFIX, WireError, lay_out, map_layout

PARALLEL = 4


class MaskCache:
    """Fetches, checks and lays out, off the event loop; each digest once at a time.

    The path holds tenant and whole digest: vLLM hashes it into its KV-cache keys, so that neither
    two versions nor two tenants ever share KV blocks.
    """

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        fingerprint: str,
        limits: bmt_core.Limits,
        loaded: Callable[[str, float], None] = lambda source, seconds: None,
    ) -> None:
        self._folder = folder
        self._registry = registry
        self._fingerprint = fingerprint
        self._limits = limits
        self._loaded = loaded
        self._slots = asyncio.Semaphore(PARALLEL)
        self._running: dict[Path, asyncio.Task[None]] = {}
        self._ready: set[Path] = set()

    def path(self, version: Version) -> Path:
        return self._folder / version.tenant / (version.digest + SUFFIX)

    async def ensure(self, version: Version) -> Path:
        """The laid-out file of a version, made if need be. Raises ApiError."""
        path = self.path(version)
        if path in self._ready:
            return path
        task = self._running.get(path)
        if task is None:
            task = asyncio.create_task(self._make(version, path))
            self._running[path] = task
            task.add_done_callback(lambda _: self._running.pop(path, None))
        # Shielded: one impatient client must not end the load that others wait for.
        await asyncio.shield(task)
        return path

    def put(self, version: Version, mask: bmt_core.Mask) -> None:
        """Lay out a mask that was just uploaded here. Call off the event loop."""
        path = self.path(version)
        if path not in self._ready:
            lay_out(mask, path)
            self._ready.add(path)

    def drop(self, version: Version) -> None:
        """Forget a version that is gone. Workers that mapped the file keep their mapping."""
        path = self.path(version)
        self._ready.discard(path)
        path.unlink(missing_ok=True)

    async def _make(self, version: Version, path: Path) -> None:
        async with self._slots:
            start = time.perf_counter()
            source = "disk"
            if not await asyncio.to_thread(_usable, path, version.digest):
                source = "registry"
                blob = await self._registry.blob(version.file_digest)
                await asyncio.to_thread(self._decode, version, blob, path)
            self._ready.add(path)
            self._loaded(source, time.perf_counter() - start)

    def _decode(self, version: Version, blob: bytes, path: Path) -> None:
        try:
            mask = bmt_core.decode(blob, limits=self._limits, expect_base=self._fingerprint)
        except bmt_core.BmtError as error:
            raise Unavailable(
                f"{version.model} in the registry cannot be served here: {error}",
                code="mask_unusable",
            ) from None
        if mask.digest != version.digest:
            raise Unavailable(
                f"{version.model} in the registry holds another mask; upload it again",
                code="blob_damaged",
            )
        lay_out(mask, path)


def _usable(path: Path, digest: str) -> bool:
    try:
        return path.exists() and map_layout(path).digest == digest
    except WireError:
        path.unlink(missing_ok=True)
        return False
