"""From the `model` of a request to a version and a hold on it, once, at admission."""

from __future__ import annotations

import asyncio

import bmt_core

from bmt_server.api.engine import Engine
from bmt_server.api.masks.lifecycle import InUse, MaskLifecycle
from bmt_server.errors import NotFound
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import DEFAULT_TENANT, Version


class Lease:
    """A request's hold on its version: it stays usable until `release`, whatever is published.

    model: what vLLM's handlers are to look up; version: None for the base model.
    """

    def __init__(
        self,
        model: str,
        residency: MaskLifecycle,
        use: InUse | None = None,
        version: Version | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self._residency = residency
        self._use = use
        self._loading = use.loading if use is not None else None

    async def ready(self) -> None:
        """Wait until the workers have the mask. Raises ApiError where they cannot."""
        if self._loading is None or self._use is None:
            return
        await asyncio.wait([self._loading])
        error = self._loading.exception()
        if error is not None and not self._residency.resident(self._use):
            raise error

    def release(self) -> None:
        """Let go. Safe to call twice."""
        use, self._use = self._use, None
        if use is not None:
            self._residency.leave(use)


class Resolver:
    """Resolves the `model` of requests against the local copy of the registry."""

    def __init__(self, snapshot: RegistryReplica, residency: MaskLifecycle, engine: Engine) -> None:
        self._snapshot = snapshot
        self._residency = residency
        self._engine = engine

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
        version = state.resolve(ref.alias, ref.digest_prefix) if state else None
        if version is None:
            # It may have been published elsewhere a moment ago.
            state = await self._snapshot.refresh(tenant, ref.name)
            version = state.resolve(ref.alias, ref.digest_prefix) if state else None
        if version is None:
            raise unknown
        return version

    async def acquire(self, tenant: str, model: str, *, load: bool = True) -> Lease:
        """Resolve and hold; the mask is loaded meanwhile, see `Lease.ready`. Raises ApiError.

        load: False where the request needs no more than the name, as for counting tokens.
        """
        if model in self._engine.base_names:
            return Lease(model, self._residency)
        version = await self.find(tenant, model)
        use = self._residency.enter(version, load=load)
        return Lease(version.internal_name, self._residency, use, version)
