"""Lifecycle of mask versions in this server: fetched to disk, loaded by the workers, unloaded.

The first request for a version makes its file ready on disk and has the workers load it. While
requests use the version, it stays loadable in every worker, evicted or not. After its eviction or
deletion, and a delay in which no request uses it, the workers drop it and its file may leave the
disk. So this class tracks no more versions than are resident or in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import bmt_core
from bmt_core.config import config_warning

from bmt_server.api.engine import Engine
from bmt_server.api.masks.local_cache import MaskCache
from bmt_server.errors import ApiError, CacheFull, MemoryFull, NotFound, Unavailable
from bmt_server.ipc.disk_cache import DiskError
from bmt_server.ipc.worker_channel import WorkerError
from bmt_server.registry.names.versions import Versions
from bmt_server.registry.schemas import Version

logger = logging.getLogger("vllm.bmt_server")

# After a client disconnects, the engine drops its request only a moment after the response has
# ended, and until then a step may still name its mask.
REMOVAL_DELAY_S = 5.0


@dataclass(slots=True, eq=False)
class TrackedVersion:
    """A version that this server uses or has used within the removal delay."""

    version: Version
    users: int = 0  # requests that run on it
    retired: bool = False  # deleted from the registry
    on_disk: bool = False  # this process holds its file
    loading: asyncio.Task[None] | None = None
    removal: asyncio.TimerHandle | None = None


class MaskLifecycle:
    """Loads versions into the workers, once each, and unloads those that no request needs.

    count_holds: called with 1 when a request begins on a version and with -1 when it ends.
    chat_template: SHA-256 of the server's; base_config: `bmt_core.config.arithmetic` of its base. A
    version that was trained with others is warned of.
    removal_delay_s: time without requests before an evicted or deleted version is unloaded.
    """

    def __init__(
        self,
        cache: MaskCache,
        engine: Engine,
        *,
        count_holds: Callable[[int], None],
        chat_template: str = "",
        base_config: Mapping[str, Any] = MappingProxyType({}),
        removal_delay_s: float = REMOVAL_DELAY_S,
    ) -> None:
        self._cache = cache
        self._engine = engine
        self._count_holds = count_holds
        self._chat_template, self._base_config = chat_template, base_config
        self._removal_delay_s = removal_delay_s
        self._tracked: dict[int, TrackedVersion] = {}  # by adapter id
        self._ids: dict[tuple[str, str], set[int]] = {}  # tenant and name -> adapter ids
        # Versions with users, by vLLM's name and adapter id: two ids share a name if a version was
        # deleted and published again meanwhile.
        self._in_use: dict[str, dict[int, TrackedVersion]] = {}
        self._unloading: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Follow the engine's evictions, from the running loop, until `close`."""
        self._spawn(self._follow_evictions())

    def acquire(self, version: Version, *, load: bool = True) -> TrackedVersion:
        """Begin a request on a version; each call needs its `release`. load: start loading too."""
        tracked = self._tracked.get(version.id)
        if tracked is None:
            tracked = self._tracked[version.id] = TrackedVersion(version)
            self._ids.setdefault((version.tenant, version.name), set()).add(version.id)
            self._check_training(version)
        self._add_user(tracked)
        if load:
            self._start_loading(tracked)
        return tracked

    def _check_training(self, version: Version) -> None:
        """Warn of a mask whose training had another chat template, or arithmetic of its base."""
        if (line := config_warning(version.metadata, self._base_config)) is not None:
            logger.warning("%s: %s", version.internal_name, line)
        if version.same_template(self._chat_template) is False:
            trained = str(version.metadata["chat_template"] or "none")
            logger.warning(
                "%s was trained with the chat template %s, and this server renders chats with %s; "
                "start it with the template of the training (--chat-template), or expect worse "
                "answers to chats",
                version.internal_name,
                trained[:12],
                self._chat_template[:12],
            )

    def release(self, tracked: TrackedVersion) -> None:
        """End a request on this version."""
        version = tracked.version
        tracked.users -= 1
        self._count_holds(-1)
        if tracked.users:
            return
        same_name = self._in_use.get(version.internal_name, {})
        same_name.pop(version.id, None)
        if same_name:
            self._publish(next(iter(same_name.values())))
        else:
            self._in_use.pop(version.internal_name, None)
            self._engine.retire(version.internal_name)
        if tracked.on_disk:
            self._cache.mark_used(version)
        self._schedule_removal(tracked)

    def resident(self, tracked: TrackedVersion) -> bool:
        """True if the workers have it in memory."""
        return self._engine.resident(tracked.version.id)

    async def ready(self, tracked: TrackedVersion) -> None:
        """Wait until the workers have it. Raises ApiError if they cannot load it."""
        if tracked.loading is not None:
            # Shielded: a client that disconnects must not cancel the load that others wait for.
            await asyncio.shield(tracked.loading)

    @contextlib.asynccontextmanager
    async def hold_for_engine(self, adapter: int) -> AsyncIterator[None]:
        """One engine call with this adapter: loaded before it, held until it has ended.

        The hold of the HTTP request ends with its response, and some of vLLM's engine calls end
        later, for example background responses. Raises ApiError.
        """
        tracked = self._tracked.get(adapter)
        if tracked is None:
            raise NotFound("the model of this request was deleted", code="model_not_found")
        self._add_user(tracked)
        try:
            self._start_loading(tracked)
            await self.ready(tracked)
            yield
        finally:
            self.release(tracked)

    def preload(self, version: Version, *, pinned: bool = False) -> None:
        """Load a version in the background, without a request; failures are logged."""
        self._spawn(self._preload(version, pinned))

    async def store_uploaded(
        self, version: Version, mask: bmt_core.Mask, *, resident: bool
    ) -> None:
        """Put an uploaded mask on the local disk, and if `resident` preload it.

        Failures are logged only, because the registry has the mask.
        """
        try:
            await self._cache.store(mask)
        except DiskError as error:
            logger.warning("%s is published but not on this disk: %s", version.model, error)
        if resident:
            self.preload(version)

    async def pin(self, version: Version, pinned: bool) -> None:
        """Load a version and exempt it from eviction, or end that. Raises ApiError."""
        tracked = self.acquire(version)
        try:
            await self.ready(tracked)
            try:
                await self._engine.pin(version.id, pinned)
            except WorkerError as error:
                raise _api_error(version, error) from None
        finally:
            self.release(tracked)

    def unpin(self, version: Version) -> None:
        """Let a version be evicted again, in the background."""
        if version.id in self._tracked:
            self._spawn(self._unpin(version))

    def retire_missing(self, key: tuple[str, str], current: Versions) -> None:
        """Retire all versions of this tenant's name except the `current` ones."""
        for adapter in self._ids.get(key, ()):
            tracked = self._tracked[adapter]
            entry = current.entry(tracked.version.digest)
            if entry is not None and entry.id == adapter:
                continue
            tracked.retired = True
            if not tracked.users:
                self._schedule_removal(tracked)

    def in_flight(self) -> dict[str, int]:
        """Running requests by internal name."""
        return {
            name: sum(t.users for t in same_name.values())
            for name, same_name in self._in_use.items()
        }

    def in_use(self) -> set[str]:
        """Versions that requests run on: <tenant>/<name>@<digest>."""
        tracked = (t.version for same_name in self._in_use.values() for t in same_name.values())
        return {f"{v.tenant}/{v.name}@{v.digest}" for v in tracked}

    def __len__(self) -> int:
        return len(self._tracked)

    async def close(self) -> None:
        """Cancel background work; the engine ends with this process."""
        loads = (t.loading for t in self._tracked.values() if t.loading)
        for task in [*self._tasks, *loads]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await task

    def _add_user(self, tracked: TrackedVersion) -> None:
        tracked.users += 1
        self._count_holds(1)
        if tracked.users == 1:
            version = tracked.version
            self._in_use.setdefault(version.internal_name, {})[version.id] = tracked
            self._publish(tracked)
        if tracked.removal is not None:
            tracked.removal.cancel()
            tracked.removal = None

    def _publish(self, tracked: TrackedVersion) -> None:
        version = tracked.version
        self._engine.publish(version.internal_name, version.id, version.source)

    def _start_loading(self, tracked: TrackedVersion) -> None:
        if tracked.loading is None and not self._engine.resident(tracked.version.id):
            tracked.loading = asyncio.create_task(self._load(tracked))
            # Each waiting request reports a failure; without one, asyncio must not warn about it.
            tracked.loading.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _load(self, tracked: TrackedVersion) -> None:
        version = tracked.version
        try:
            # The same id may be unloading.
            if version.id in self._unloading:
                await asyncio.wait([self._unloading[version.id]])
            if not tracked.on_disk:
                await self._cache.hold(version)
                tracked.on_disk = True
            await self._engine.load(version.internal_name, version.id, version.source)
        except WorkerError as error:
            raise _api_error(version, error) from None
        finally:
            tracked.loading = None
            if not tracked.users:
                self._schedule_removal(tracked)

    async def _preload(self, version: Version, pinned: bool) -> None:
        tracked = self.acquire(version)
        try:
            await self.ready(tracked)
            if pinned:
                await self._engine.pin(version.id, True)
        except (ApiError, WorkerError) as error:
            logger.warning("%s was not preloaded: %s", version.model, error)
        finally:
            self.release(tracked)

    async def _unpin(self, version: Version) -> None:
        with contextlib.suppress(WorkerError):
            await self._engine.pin(version.id, False)

    async def _follow_evictions(self) -> None:
        while True:
            tracked = self._tracked.get(await self._engine.evictions.get())
            if tracked is not None and not tracked.users:
                self._schedule_removal(tracked)

    def _schedule_removal(self, tracked: TrackedVersion) -> None:
        """Remove an unused version after the delay, if it is retired or no longer resident."""
        if tracked.removal is None and not self._needed(tracked):
            loop = asyncio.get_running_loop()
            tracked.removal = loop.call_later(self._removal_delay_s, self._remove, tracked)

    def _needed(self, tracked: TrackedVersion) -> bool:
        return not tracked.retired and self._engine.resident(tracked.version.id)

    def _remove(self, tracked: TrackedVersion) -> None:
        tracked.removal = None
        version = tracked.version
        if tracked.users or tracked.loading is not None or self._needed(tracked):
            return
        del self._tracked[version.id]
        ids = self._ids[(version.tenant, version.name)]
        ids.discard(version.id)
        if not ids:
            del self._ids[(version.tenant, version.name)]
        task = self._spawn(self._unload(tracked))
        self._unloading[version.id] = task
        task.add_done_callback(lambda _: self._unloading.pop(version.id, None))

    async def _unload(self, tracked: TrackedVersion) -> None:
        await self._engine.drop(tracked.version.id)
        if tracked.on_disk:
            self._cache.release(tracked.version)
        if tracked.retired:
            await self._cache.delete(tracked.version)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _api_error(version: Version, error: WorkerError) -> ApiError:
    text = f"the engine could not load {version.model}: {error}"
    if error.code == "pinned":
        return MemoryFull(text)
    if error.code == "full":
        return CacheFull(text)
    return Unavailable(text, code="mask_unusable")
