"""One API process: registry, keys, snapshot, cache, resolver and figures, wired together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bmt_core
from prometheus_client import REGISTRY, CollectorRegistry

from bmt_server.api.admission import KeyLimiter, SequenceLimiter
from bmt_server.api.engine import Engine
from bmt_server.api.masks.lifecycle import REMOVAL_DELAY_S, MaskLifecycle
from bmt_server.api.masks.local_cache import MaskCache
from bmt_server.api.masks.registry_changes import RegistryChanges
from bmt_server.api.masks.resolver import Resolver
from bmt_server.api.metrics.masks import FileCollectors, Metrics
from bmt_server.api.routes.models import Models
from bmt_server.api.shutdown import Shutdown
from bmt_server.errors import ApiError
from bmt_server.ipc.disk_cache import DiskError
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.registry import Registry
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.schemas import Version
from bmt_server.settings import Settings

logger = logging.getLogger("vllm.bmt_server")

_FIRST_SYNC_S = 5.0


class AppState:
    """Made by `create`, found by routes and gate at `app.state.bmt`, ended by `close`."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        registry: CollectorRegistry,
        scraped: CollectorRegistry | None,
        removal_delay_s: float,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = Metrics(settings.max_mask_labels, registry)
        self.store = RegistryConnection(settings.registry_url)
        self.registry = Registry(self.store)
        self.keys = ApiKeyStore(self.store)
        self.limits = bmt_core.Limits.for_geometry(settings.gates, settings.max_sparsity)
        self.cache = MaskCache(
            Path(settings.cache_dir),
            self.registry,
            settings.fingerprint,
            self.limits,
            settings.mask_cache_bytes,
            self.metrics.cold_load,
        )
        self.lifecycle = MaskLifecycle(
            self.cache,
            engine,
            count_holds=self.metrics.holding.inc,
            removal_delay_s=removal_delay_s,
        )
        self.snapshot = RegistryReplica(
            self.registry,
            on_change=RegistryChanges(self.lifecycle).apply,
            on_keys_change=self.keys.invalidate,
            on_connection=self.metrics.registry_up.set,
        )
        self.resolver = Resolver(self.snapshot, self.lifecycle, engine)
        self.models = Models(self.snapshot, engine)
        self.collectors = FileCollectors(scraped or registry, settings.stats_dir, self.public_names)
        self.uploads = asyncio.Semaphore(4)
        self.shutdown = Shutdown(settings.drain_s)
        self.key_limiter = KeyLimiter(settings.key_concurrency, settings.key_rate)
        self.sequence_limiter = SequenceLimiter(settings.queue)

    @classmethod
    async def create(
        cls,
        settings: Settings,
        engine: Engine,
        registry: CollectorRegistry = REGISTRY,
        scraped: CollectorRegistry | None = None,
        removal_delay_s: float = REMOVAL_DELAY_S,
    ) -> AppState:
        """Connect and read the registry. A Redis that is away is waited for, then served without.

        registry, scraped: of Prometheus (`metrics.py`).
        Raises Unavailable where Redis answers but may evict masks.
        """
        state = cls(settings, engine, registry, scraped, removal_delay_s)
        try:
            await state.registry.check_eviction_policy()
        except ApiError as error:
            if error.code == "registry_may_evict":
                await state.close()
                raise
        state.cache.trim()
        state.lifecycle.start()
        state.snapshot.start()
        state.keys.start()
        # Without it in time the server starts all the same, and /readyz waits for the first sync.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(state.snapshot.synced.wait(), _FIRST_SYNC_S)
        return state

    async def close(self) -> None:
        """Stop following the registry and let its connections go."""
        await self.snapshot.close()
        await self.keys.close()
        await self.lifecycle.close()
        await self.cache.close()
        await self.engine.close()
        await self.store.close()
        self.collectors.close()
        self.metrics.close()

    async def keep(self, version: Version, mask: bmt_core.Mask, *, resident: bool) -> None:
        """Have a mask that was just uploaded here at hand. Never fails: the registry has it."""
        try:
            await self.cache.store(mask)
        except DiskError as error:
            logger.warning("%s is in the registry, but not on this disk: %s", version.model, error)
        if resident:
            self.lifecycle.warm(version)

    async def ready(self) -> bool:
        """True once the registry was read, while the engine is well and nobody said to stop.

        A registry that goes away later does not count: resident masks are served without it.
        """
        well = self.snapshot.synced.is_set() and not self.shutdown.started
        return well and await self.engine.healthy()

    @property
    def max_upload_bytes(self) -> int:
        return self.settings.max_upload_bytes or self.limits.max_file_bytes

    def public_names(self, internal: Iterable[str]) -> list[str]:
        """Names under which requests may reach these internal adapters, most specific last."""
        found: list[str] = []
        for name in internal:
            tenant, _, model = name.rpartition("/")
            base, _, prefix = model.partition("@")
            state = self.snapshot.get(tenant or "default", base)
            if state is not None:
                for alias, digest in (("", state.latest or ""), *state.aliases.items()):
                    if digest.startswith(prefix):
                        found.append(f"{base}:{alias}" if alias else base)
            found.append(name)
        return list(dict.fromkeys(found))


def find_app_state(app: Any) -> AppState | None:
    """The AppState of a Starlette app, None before the plugin's `init_state` has stored it."""
    return getattr(app.state, "bmt", None)
