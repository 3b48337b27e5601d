"""Resolution of a request's `model` to one version of a mask, once, at admission."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import bmt_core

from bmt_server.api.engine import Engine
from bmt_server.api.masks.lifecycle import MaskLifecycle, TrackedVersion
from bmt_server.errors import NotFound
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import DEFAULT_TENANT, Version


class Lease:
    """A request's hold on its version, which stays usable until `release`, even if deleted.

    model: the name that vLLM's handlers look up. version: None for the base model.
    """

    def __init__(
        self,
        model: str,
        lifecycle: MaskLifecycle,
        tracked: TrackedVersion | None = None,
        version: Version | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self._lifecycle = lifecycle
        self._tracked = tracked
        self._loading = tracked.loading if tracked is not None else None

    async def ready(self) -> None:
        """Wait until the workers have the mask. Raises ApiError if they cannot load it."""
        if self._loading is None or self._tracked is None:
            return
        await asyncio.wait([self._loading])
        error = self._loading.exception()
        if error is not None and not self._lifecycle.resident(self._tracked):
            raise error

    def release(self) -> None:
        """End the hold. Idempotent."""
        tracked, self._tracked = self._tracked, None
        if tracked is not None:
            self._lifecycle.release(tracked)


class Resolver:
    """Resolves names against the local replica of the registry."""

    def __init__(self, replica: RegistryReplica, lifecycle: MaskLifecycle, engine: Engine) -> None:
        self._replica = replica
        self._lifecycle = lifecycle
        self._engine = engine

    async def find(self, tenant: str, model: str) -> Version:
        """The version that a mask's name refers to now. Raises NotFound, RegistryDown."""
        unknown = NotFound(f"The model `{model[:200]}` does not exist.", code="model_not_found")
        prefix = f"{tenant}/"
        text = model.removeprefix(prefix) if tenant != DEFAULT_TENANT else model
        try:
            ref = bmt_core.MaskRef.parse(text)
        except bmt_core.InvalidName:
            raise unknown from None
        state = self._replica.get(tenant, ref.name)
        version = state.resolve(ref.alias, ref.digest_prefix) if state else None
        if version is None:
            # It may have been published through another replica a moment ago.
            state = await self._replica.look_up(tenant, ref.name, ref.digest_prefix)
            version = state.resolve(ref.alias, ref.digest_prefix) if state else None
        if version is None:
            raise unknown
        return version

    async def acquire(self, tenant: str, model: str, *, load: bool = True) -> Lease:
        """Resolve a model and hold it; the mask loads meanwhile, see `Lease.ready`.

        load: False if the request needs no more than the name, as for counting tokens. Raises
        ApiError.
        """
        if model in self._engine.base_names:
            return Lease(model, self._lifecycle)
        version = await self.find(tenant, model)
        tracked = self._lifecycle.acquire(version, load=load)
        return Lease(version.internal_name, self._lifecycle, tracked, version)

    def public_names(self, internal: Iterable[str]) -> list[str]:
        """Names by which requests may reach these internal names, the most specific last."""
        names: list[str] = []
        for name in internal:
            tenant, _, model = name.rpartition("/")
            base, _, prefix = model.partition("@")
            state = self._replica.get(tenant or DEFAULT_TENANT, base)
            if state is not None:
                for alias, digest in (("", state.latest or ""), *state.aliases.items()):
                    if digest.startswith(prefix):
                        names.append(f"{base}:{alias}" if alias else base)
            names.append(name)
        return list(dict.fromkeys(names))
