"""Local disk cache of an API process: files that the workers map, created off the event loop.

Fetching waits for the network and stays on the event loop. Verifying, decoding and laying out
(`ipc/cold_path.py`) run in a few threads, because numpy, zstd and SHA-256 release the GIL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import bmt_core

from bmt_server.errors import CacheFull, NotFound, Unavailable
from bmt_server.ipc.blob import BlobError
from bmt_server.ipc.cold_path import ColdPath
from bmt_server.ipc.disk_cache import DiskCache, DiskError, DiskFull
from bmt_server.registry.registry import Registry
from bmt_server.registry.schemas import Version

# Masks fetched and decoded at once. More of them would wait for each other's processors and take
# these from the engine; each holds one blob in memory.
PARALLEL = 4
# Pause between two trims of a folder that is still over its bound; another process may be trimming.
_PAUSE_S = 0.1

T = TypeVar("T")


class MaskCache:
    """Creates masks' files on the local disk, each digest once at a time.

    on_ready: called with the origin of each mask, `disk` or `registry`, and the seconds it took.
    """

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        fingerprint: str,
        limits: bmt_core.Limits,
        bound_bytes: int,
        on_ready: Callable[[str, float], None] = lambda origin, seconds: None,
    ) -> None:
        self.disk = DiskCache(folder, bound_bytes)
        self._cold_path = ColdPath(self.disk, fingerprint, limits)
        self._registry = registry
        self._on_ready = on_ready
        self._slots = asyncio.Semaphore(PARALLEL)
        self._threads = ThreadPoolExecutor(PARALLEL, thread_name_prefix="bmt-cold")
        self._creating: dict[str, asyncio.Task[None]] = {}
        self._trimming: asyncio.Task[None] | None = None

    async def hold(self, version: Version) -> None:
        """Create the file of a version if needed and keep it from eviction until `release`.

        Raises ApiError, and then holds nothing.
        """
        digest = version.digest
        start = time.perf_counter()
        on_disk = await self._run(self.disk.hold, digest)
        try:
            if not on_disk:
                await self._create_once(version)
        except BaseException:
            self.disk.release(digest)
            raise
        self._on_ready("disk" if on_disk else "registry", time.perf_counter() - start)

    def release(self, version: Version) -> None:
        """End one `hold`."""
        self.disk.release(version.digest)
        if self.disk.needs_trim:
            self.trim()

    def mark_used(self, version: Version) -> None:
        """Make a held version the most recently used one: a request on it has ended."""
        self.disk.mark_used(version.digest)

    async def store(self, mask: bmt_core.Mask) -> None:
        """Lay out a mask that was just uploaded to this process. Raises DiskError."""
        await self._run(self.disk.store, mask)
        if self.disk.needs_trim:
            self.trim()

    @contextmanager
    def uploads(self) -> Iterator[Callable[[int], None]]:
        """Uploads that arrive in the folder; call the yielded function with each part's size."""
        with self.disk.uploads() as add:

            def added(size: int) -> None:
                add(size)
                if self.disk.needs_trim:
                    self.trim()

            yield added

    async def delete(self, version: Version) -> None:
        """Delete the file of a version that was deleted or is damaged."""
        await self._run(self.disk.delete, version.digest)

    def trim(self) -> None:
        """Evict files beyond the bound, and delete what a crash left, in the background."""
        if self._trimming is None or self._trimming.done():
            self._trimming = asyncio.create_task(self._trim())

    async def close(self) -> None:
        """Cancel background work; complete files stay."""
        for task in [*self._creating.values(), *([self._trimming] if self._trimming else [])]:
            task.cancel()
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        self.disk.close()

    async def _trim(self) -> None:
        await self._run(self.disk.trim)
        while self.disk.needs_trim:
            await asyncio.sleep(_PAUSE_S)
            await self._run(self.disk.trim)

    async def _create_once(self, version: Version) -> None:
        task = self._creating.get(version.digest)
        if task is None:
            task = asyncio.create_task(self._create(version))
            self._creating[version.digest] = task
            task.add_done_callback(lambda _: self._creating.pop(version.digest, None))
        # Shielded: one impatient client must not end the load that others wait for.
        await asyncio.shield(task)

    async def _create(self, version: Version) -> None:
        async with self._slots:
            try:
                blob = await self._registry.blob(version.file_digest, version.bytes)
            except NotFound:
                raise Unavailable(
                    f"the registry has lost the file of {version.model}; upload it again",
                    code="blob_missing",
                ) from None
            try:
                await self._run(self._cold_path.install, version.source, blob)
            except BlobError as error:
                raise Unavailable(f"{version.model}: {error}", code=error.code) from None
            except DiskFull as error:
                raise CacheFull(str(error)) from None
            except DiskError as error:
                raise Unavailable(str(error), code="cache_unusable") from None
        if self.disk.needs_trim:
            self.trim()

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
