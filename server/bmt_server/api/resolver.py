"""From the `model` of a request to a mask that the engine can use, once, at admission."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import bmt_core

from bmt_server.api.bridge import Engine
from bmt_server.api.cache import MaskCache
from bmt_server.api.errors import ApiError, NotFound, Unavailable
from bmt_server.api.schemas import DEFAULT_TENANT, Version
from bmt_server.api.snapshot import Snapshot

_ATTEMPTS = 3


@dataclass(slots=True)
class _Loaded:
    """A version that the engine knows. users: requests that run on it."""

    version: Version
    users: int = 0
    retired: bool = False


class Lease:
    """A request's hold on its version: it stays usable until `release`, whatever is published."""

    def __init__(self, resolver: Resolver, version: Version | None, model: str) -> None:
        self._resolver = resolver
        self.version = version
        self.model = model

    def release(self) -> None:
        """Let go. Safe to call twice."""
        version, self.version = self.version, None
        if version is not None:
            self._resolver.release(version)


class Resolver:
    """Resolves names for one server and keeps track of which versions requests run on."""

    def __init__(self, snapshot: Snapshot, cache: MaskCache, engine: Engine) -> None:
        self._snapshot = snapshot
        self._cache = cache
        self._engine = engine
        self._loaded: dict[int, _Loaded] = {}
        self._loading: dict[int, asyncio.Task[None]] = {}
        self._evictions: set[asyncio.Task[None]] = set()
        self.grace_s = 5.0

    async def find(self, tenant: str, model: str) -> Version:
        """The version that a mask's name means now. Raises NotFound, RegistryDown."""
        unknown = NotFound(f"The model `{model[:200]}` does not exist.", code="model_not_found")
        own = f"{tenant}/"
        text = model.removeprefix(own) if tenant != DEFAULT_TENANT else model
        try:
            ref = bmt_core.MaskRef.parse(text)
        except bmt_core.InvalidName:
            raise unknown from None
        state = self._snapshot.get(tenant, ref.name)
        version = state.find(ref.alias, ref.digest_prefix) if state else None
        if version is None:
            # It may have been published elsewhere a moment ago.
            state = await self._snapshot.refresh(tenant, ref.name)
            version = state.find(ref.alias, ref.digest_prefix) if state else None
        if version is None:
            raise unknown
        return version

    async def acquire(self, tenant: str, model: str) -> Lease:
        """Resolve, make the engine ready for it, and hold it. Raises ApiError."""
        if model in self._engine.base_names:
            return Lease(self, None, model)
        for _ in range(_ATTEMPTS):
            version = await self.find(tenant, model)
            loaded = self._loaded.get(version.id)
            if loaded is None:
                await self._load(version)
                loaded = self._loaded.get(version.id)
            # None or retired: the version was deleted while it was loading. Look again.
            if loaded is not None and not loaded.retired:
                loaded.users += 1
                return Lease(self, version, version.internal_name)
        raise Unavailable(f"{model[:200]} changes too quickly; try again", code="busy")

    async def _load(self, version: Version) -> None:
        task = self._loading.get(version.id)
        if task is None:
            task = asyncio.create_task(self._bring(version))
            self._loading[version.id] = task
            task.add_done_callback(lambda _: self._loading.pop(version.id, None))
        await asyncio.shield(task)

    async def _bring(self, version: Version) -> None:
        path = await self._cache.ensure(version)
        try:
            await self._engine.preload(version.internal_name, version.id, path)
        except ApiError:
            raise
        except Exception as error:
            raise Unavailable(
                f"the engine could not load {version.model}: {error}", code="mask_unusable"
            ) from None
        self._engine.publish(version.internal_name, version.id, path)
        self._loaded[version.id] = _Loaded(version)

    def release(self, version: Version) -> None:
        """One request on this version has ended."""
        loaded = self._loaded.get(version.id)
        if loaded is None:
            return
        loaded.users -= 1
        if loaded.retired and loaded.users <= 0:
            self._evict(loaded)

    def names_changed(self, names: Iterable[tuple[str, str]]) -> None:
        """Retire loaded versions that the registry no longer has; busy ones when they are done."""
        touched = set(names)
        for loaded in list(self._loaded.values()):
            version = loaded.version
            if (version.tenant, version.name) not in touched or loaded.retired:
                continue
            state = self._snapshot.get(version.tenant, version.name)
            current = state.versions.get(version.digest) if state else None
            # Deleted and published again is a new id: the old one goes all the same.
            if current is None or current.id != version.id:
                loaded.retired = True
                if loaded.users <= 0:
                    self._evict(loaded)

    def _evict(self, loaded: _Loaded) -> None:
        version = loaded.version
        self._loaded.pop(version.id, None)
        self._engine.retire(version.internal_name)
        task = asyncio.create_task(self._remove(version))
        self._evictions.add(task)
        task.add_done_callback(self._evictions.discard)

    async def _remove(self, version: Version) -> None:
        # A client that went away is told to the engine a moment after its response ended, and
        # until then a step may still name this adapter.
        await asyncio.sleep(self.grace_s)
        with contextlib.suppress(Exception):
            await self._engine.evict(version.id)
        held = self._snapshot.of_tenant(version.tenant)
        if not any(version.digest in state.versions for state in held):
            self._cache.drop(version)

    async def close(self) -> None:
        """End pending evictions; the engine ends with this process."""
        for task in list(self._evictions):
            task.cancel()

    def running(self) -> dict[str, int]:
        """Requests in flight by internal name."""
        return {x.version.internal_name: x.users for x in self._loaded.values() if x.users}
