"""Which versions this server uses: held on the disk and in the workers' memory, and let go.

The life of a version here: a request names it, so its file is made ready and the workers load it;
while a request runs on it, it stays loadable in every worker, evicted or not; when it was evicted
and nobody has used it for a moment, or when it was deleted, the workers forget it and its file
may leave the disk. So what is kept here is bounded by what is resident and what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from bmt_server.api.engine import Engine
from bmt_server.api.masks.local_cache import MaskCache
from bmt_server.errors import ApiError, CacheFull, MemoryFull, NotFound, Unavailable
from bmt_server.ipc.worker_channel import WorkerError
from bmt_server.registry.schemas import Version

logger = logging.getLogger("vllm.bmt_server")

# After a client disconnects, the engine drops its request only a moment after the response has
# ended, and until then a step may still name its mask.
REMOVAL_DELAY_S = 5.0


@dataclass(slots=True, eq=False)
class InUse:
    """A version that this server uses or did a moment ago. users: requests that run on it."""

    version: Version
    users: int = 0
    retired: bool = False  # the registry does not have it any more
    on_disk: bool = False  # this process holds its file
    loading: asyncio.Task[None] | None = None
    leaving: asyncio.TimerHandle | None = None


class MaskLifecycle:
    """Loads versions into the workers, once each, and lets go of what nobody needs."""

    def __init__(
        self,
        cache: MaskCache,
        engine: Engine,
        *,
        count_holds: Callable[[int], None],
        removal_delay_s: float = REMOVAL_DELAY_S,
    ) -> None:
        """count_holds: called with 1 when a request begins on a version and -1 when it ends."""
        self._cache = cache
        self._engine = engine
        self._count_holds = count_holds
        self._removal_delay_s = removal_delay_s
        self._known: dict[int, InUse] = {}
        self._of_name: dict[tuple[str, str], set[int]] = {}
        # Requests in flight by vLLM's name: two ids share one where a version was deleted and
        # published again meanwhile.
        self._named: dict[str, dict[int, InUse]] = {}
        self._leaving: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Follow the engine's evictions, from the running loop, until `close`."""
        self._spawn(self._follow_evictions())

    def enter(self, version: Version, *, load: bool = True) -> InUse:
        """Begin a request on a version; each needs its `leave`. load: begin to load it too."""
        use = self._known.get(version.id)
        if use is None:
            use = self._known[version.id] = InUse(version)
            self._of_name.setdefault((version.tenant, version.name), set()).add(version.id)
        self._join(use)
        if load:
            self._begin(use)
        return use

    def leave(self, use: InUse) -> None:
        """A request on this version has ended."""
        version = use.version
        use.users -= 1
        self._count_holds(-1)
        if use.users:
            return
        sharing = self._named.get(version.internal_name, {})
        sharing.pop(version.id, None)
        if sharing:
            self._publish(next(iter(sharing.values())))
        else:
            self._named.pop(version.internal_name, None)
            self._engine.retire(version.internal_name)
        if use.on_disk:
            self._cache.mark_used(version)
        self._settle(use)

    def resident(self, use: InUse) -> bool:
        """True where the workers have it in memory."""
        return self._engine.resident(use.version.id)

    async def ready(self, use: InUse) -> None:
        """Wait until the workers have it. Raises ApiError where they cannot."""
        if use.loading is not None:
            # Shielded: one impatient client must not end the load that others wait for.
            await asyncio.shield(use.loading)

    @contextlib.asynccontextmanager
    async def hold_for_engine(self, adapter: int) -> AsyncIterator[None]:
        """Around what the engine is asked with this adapter: loaded before, held until after.

        A request's own hold ends with its response, and some of vLLM's go on after that. Raises
        ApiError.
        """
        use = self._known.get(adapter)
        if use is None:
            raise NotFound("the model of this request was deleted", code="model_not_found")
        self._join(use)
        try:
            self._begin(use)
            await self.ready(use)
            yield
        finally:
            self.leave(use)

    def warm(self, version: Version, *, pinned: bool = False) -> None:
        """Load a version in the background, with no request for it; failures are logged."""
        self._spawn(self._warm(version, pinned))

    async def pin(self, version: Version, pinned: bool) -> None:
        """Load a version and exempt it from eviction, or end that. Raises ApiError."""
        use = self.enter(version)
        try:
            await self.ready(use)
            try:
                await self._engine.pin(version.id, pinned)
            except WorkerError as error:
                raise _failed(version, error) from None
        finally:
            self.leave(use)

    def unpin(self, version: Version) -> None:
        """Let a version be evicted again, in the background."""
        if version.id in self._known:
            self._spawn(self._unpin(version))

    def retire(self, key: tuple[str, str], current: Iterable[Version]) -> None:
        """The registry has only the `current` versions of this tenant's name."""
        known = self._of_name.get(key)
        for adapter in known - {v.id for v in current} if known else ():
            use = self._known[adapter]
            use.retired = True
            if not use.users:
                self._settle(use)

    def in_flight(self) -> dict[str, int]:
        """Requests by internal name."""
        return {
            name: sum(u.users for u in sharing.values()) for name, sharing in self._named.items()
        }

    def __len__(self) -> int:
        return len(self._known)

    async def close(self) -> None:
        """End what goes on in the background; the engine ends with this process."""
        for task in [*self._tasks, *(u.loading for u in self._known.values() if u.loading)]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await task

    def _join(self, use: InUse) -> None:
        use.users += 1
        self._count_holds(1)
        if use.users == 1:
            self._named.setdefault(use.version.internal_name, {})[use.version.id] = use
            self._publish(use)
        if use.leaving is not None:
            use.leaving.cancel()
            use.leaving = None

    def _publish(self, use: InUse) -> None:
        version = use.version
        self._engine.publish(version.internal_name, version.id, version.source)

    def _begin(self, use: InUse) -> None:
        if use.loading is None and not self._engine.resident(use.version.id):
            use.loading = asyncio.create_task(self._load(use))
            # A failure is each waiting request's to tell; one that nobody waits for is no news.
            use.loading.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _load(self, use: InUse) -> None:
        version = use.version
        try:
            # The same id may just be on its way out.
            if version.id in self._leaving:
                await asyncio.wait([self._leaving[version.id]])
            if not use.on_disk:
                await self._cache.hold(version)
                use.on_disk = True
            await self._engine.load(version.internal_name, version.id, version.source)
        except WorkerError as error:
            raise _failed(version, error) from None
        finally:
            use.loading = None
            if not use.users:
                self._settle(use)

    async def _warm(self, version: Version, pinned: bool) -> None:
        use = self.enter(version)
        try:
            await self.ready(use)
            if pinned:
                await self._engine.pin(version.id, True)
        except (ApiError, WorkerError) as error:
            logger.warning("%s was not loaded ahead of its use: %s", version.model, error)
        finally:
            self.leave(use)

    async def _unpin(self, version: Version) -> None:
        with contextlib.suppress(WorkerError):
            await self._engine.pin(version.id, False)

    async def _follow_evictions(self) -> None:
        while True:
            use = self._known.get(await self._engine.evictions.get())
            if use is not None and not use.users:
                self._settle(use)

    def _settle(self, use: InUse) -> None:
        """Let a version go that no request uses, a moment from now, where it need not stay."""
        if use.leaving is None and (use.retired or not self._engine.resident(use.version.id)):
            loop = asyncio.get_running_loop()
            use.leaving = loop.call_later(self._removal_delay_s, self._let_go, use)

    def _let_go(self, use: InUse) -> None:
        use.leaving = None
        version = use.version
        needed = not use.retired and self._engine.resident(version.id)
        if use.users or use.loading is not None or needed:
            return
        del self._known[version.id]
        ids = self._of_name[(version.tenant, version.name)]
        ids.discard(version.id)
        if not ids:
            del self._of_name[(version.tenant, version.name)]
        task = self._spawn(self._forget(use))
        self._leaving[version.id] = task
        task.add_done_callback(lambda _: self._leaving.pop(version.id, None))

    async def _forget(self, use: InUse) -> None:
        await self._engine.drop(use.version.id)
        if use.on_disk:
            self._cache.release(use.version)
        if use.retired:
            await self._cache.delete(use.version)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _failed(version: Version, error: WorkerError) -> ApiError:
    text = f"the engine could not load {version.model}: {error}"
    if error.code == "pinned":
        return MemoryFull(text)
    if error.code == "full":
        return CacheFull(text)
    return Unavailable(text, code="mask_unusable")
