"""From the registry to the local disk, off the event loop: what the workers map.

Fetching waits on the network and stays on the event loop; hashing, decoding and laying out run in
a few threads of their own, where numpy, zstd and SHA-256 let go of the GIL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import bmt_core

from bmt_server.errors import CacheFull, NotFound, Unavailable
from bmt_server.ipc.blob import BlobError, decode_blob
from bmt_server.ipc.disk_cache import DiskCache, DiskError, DiskFull
from bmt_server.registry.registry import Registry
from bmt_server.registry.schemas import Version

# How many masks are fetched or decoded at once. More would only wait for each other's processor
# and take it from the engine; each holds one blob in memory.
PARALLEL = 4
# Between two looks at a folder that is still beyond its bound: another process may be at it.
_PAUSE_S = 0.1

T = TypeVar("T")


class MaskCache:
    """Makes masks' files ready on the local disk, each digest once at a time."""

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        fingerprint: str,
        limits: bmt_core.Limits,
        bound_bytes: int,
        loaded: Callable[[str, float], None] = lambda source, seconds: None,
    ) -> None:
        """loaded: hears where each mask came from, `disk` or `registry`, and the seconds."""
        self.disk = DiskCache(folder, bound_bytes)
        self._registry = registry
        self._fingerprint = fingerprint
        self._limits = limits
        self._loaded = loaded
        self._slots = asyncio.Semaphore(PARALLEL)
        self._threads = ThreadPoolExecutor(PARALLEL, thread_name_prefix="bmt-cold")
        self._making: dict[str, asyncio.Task[None]] = {}
        self._tidying: asyncio.Task[None] | None = None

    async def hold(self, version: Version) -> None:
        """Make the file of a version ready and keep it from eviction until `release`.

        Raises ApiError, and holds nothing then.
        """
        digest = version.digest
        start = time.perf_counter()
        there = await self._run(self.disk.hold, digest)
        try:
            if not there:
                await self._made(version)
        except BaseException:
            self.disk.release(digest)
            raise
        self._loaded("disk" if there else "registry", time.perf_counter() - start)

    def release(self, version: Version) -> None:
        """End one `hold`."""
        self.disk.release(version.digest)
        if self.disk.needs_trim:
            self.trim()

    def mark_used(self, version: Version) -> None:
        """A request on a held version has ended: it is the most recently used now."""
        self.disk.mark_used(version.digest)

    async def store(self, mask: bmt_core.Mask) -> None:
        """Lay out a mask that was just uploaded here. Raises DiskError."""
        await self._run(self.disk.store, mask)
        if self.disk.needs_trim:
            self.trim()

    async def delete(self, version: Version) -> None:
        """Delete the file of a version that is gone or damaged."""
        await self._run(self.disk.delete, version.digest)

    def trim(self) -> None:
        """Bring the folder under its bound, and collect what a crash left, in the background."""
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._trim())

    async def close(self) -> None:
        """End what is under way; files that are whole stay."""
        for task in [*self._making.values(), *([self._tidying] if self._tidying else [])]:
            task.cancel()
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        self.disk.close()

    async def _trim(self) -> None:
        await self._run(self.disk.trim)
        while self.disk.needs_trim:
            await asyncio.sleep(_PAUSE_S)
            await self._run(self.disk.trim)

    async def _made(self, version: Version) -> None:
        task = self._making.get(version.digest)
        if task is None:
            task = asyncio.create_task(self._make(version))
            self._making[version.digest] = task
            task.add_done_callback(lambda _: self._making.pop(version.digest, None))
        # Shielded: one impatient client must not end the load that others wait for.
        await asyncio.shield(task)

    async def _make(self, version: Version) -> None:
        async with self._slots:
            try:
                blob = await self._registry.blob(version.file_digest, version.bytes)
            except NotFound:
                raise Unavailable(
                    f"the registry has lost the file of {version.model}; upload it again",
                    code="blob_missing",
                ) from None
            try:
                await self._run(self._lay_out, version, blob)
            except BlobError as error:
                raise Unavailable(f"{version.model}: {error}", code=error.code) from None
            except DiskFull as error:
                raise CacheFull(str(error)) from None
            except DiskError as error:
                raise Unavailable(str(error), code="cache_unusable") from None
        if self.disk.needs_trim:
            self.trim()

    def _lay_out(self, version: Version, blob: bytearray) -> None:
        mask = decode_blob(blob, version.source, self._fingerprint, self._limits)
        self.disk.store(mask)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
