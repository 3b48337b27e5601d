"""State of one API process: its parts, wired together, and their start and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bmt_core
from bmt_core.config import arithmetic
from prometheus_client import REGISTRY, CollectorRegistry

from bmt_server.api.admission import KeyLimiter, SequenceLimiter, UploadLimiter
from bmt_server.api.batches.parts import Parts
from bmt_server.api.batches.room import Room
from bmt_server.api.batches.runner import BatchRunner
from bmt_server.api.body.schemas import RequestSchemas
from bmt_server.api.body.turns import Turns
from bmt_server.api.canary.shadows import Shadows
from bmt_server.api.canary.void_splits import VoidSplits
from bmt_server.api.engine import Engine
from bmt_server.api.masks.lifecycle import REMOVAL_DELAY_S, MaskLifecycle
from bmt_server.api.masks.local_cache import MaskCache
from bmt_server.api.masks.registry_changes import RegistryChanges
from bmt_server.api.masks.resolver import Resolver
from bmt_server.api.metrics.collectors import StatsCollectors
from bmt_server.api.metrics.counters import Metrics
from bmt_server.api.metrics.port import MetricsPort
from bmt_server.api.metrics.served_base import ServedBaseCollector
from bmt_server.api.metrics.versions import VersionMetrics
from bmt_server.api.models.listing import ModelList
from bmt_server.api.shutdown import Shutdown, interrupt_process
from bmt_server.api.usage.budgets import Budgets
from bmt_server.api.usage.counter import UsageCounter
from bmt_server.api.usage.meter import UsageMeter
from bmt_server.errors import ApiError, BlobsDown, RegistryDown
from bmt_server.ipc.object_store import ObjectStore
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.batches.store import BatchStore
from bmt_server.registry.canary.splits import Splits
from bmt_server.registry.connection import RegistryConnection
from bmt_server.registry.files.store import FileStore
from bmt_server.registry.housekeeping import Housekeeper
from bmt_server.registry.jobs.store import JobStore
from bmt_server.registry.names.catalog import Key
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.registry import Registry
from bmt_server.registry.replica import RegistryReplica
from bmt_server.registry.retention.retention import Retention
from bmt_server.registry.retention.rules import Rule
from bmt_server.registry.sessions import SessionStore
from bmt_server.registry.usage.counts import UsageStore
from bmt_server.registry.usage.limits import LimitStore, default_limits
from bmt_server.settings import Settings
from bmt_server.sources.importer import Importer

logger = logging.getLogger("vllm.bmt_server")

_FIRST_SYNC_S = 5.0
_KEY_CONNECTIONS = 8


@dataclass(frozen=True)
class AppState:
    """Parts of one API process. Made by `create`, stored at `app.state.bmt`, ended by `close`."""

    settings: Settings
    limits: bmt_core.Limits
    engine: Engine
    connection: RegistryConnection
    key_connection: RegistryConnection
    registry: Registry
    splits: Splits
    void_splits: VoidSplits
    replica: RegistryReplica
    housekeeper: Housekeeper
    retention: Retention
    keys: ApiKeyStore
    sessions: SessionStore
    cache: MaskCache
    lifecycle: MaskLifecycle
    resolver: Resolver
    models: ModelList
    metrics: Metrics
    versions: VersionMetrics
    shadows: Shadows
    collectors: StatsCollectors
    metrics_port: MetricsPort
    usage_store: UsageStore
    usage: UsageCounter
    limit_store: LimitStore
    budgets: Budgets
    meter: UsageMeter
    shutdown: Shutdown
    key_limiter: KeyLimiter
    sequence_limiter: SequenceLimiter
    uploads: UploadLimiter
    importer: Importer
    files: FileStore | None
    jobs: JobStore | None
    batches: BatchStore | None
    batch_runner: BatchRunner | None
    file_uploads: UploadLimiter
    schemas: RequestSchemas
    turns: Turns

    @classmethod
    async def create(
        cls,
        settings: Settings,
        engine: Engine,
        metrics_registry: CollectorRegistry = REGISTRY,
        *,
        scraped: CollectorRegistry | None = None,
        schemas: RequestSchemas | None = None,
        removal_delay_s: float = REMOVAL_DELAY_S,
        stop: Callable[[], None] = interrupt_process,
    ) -> AppState:
        """Build all parts, connect to the registry and read it.

        If Redis does not answer within seconds, the server starts without it, and `ready` is False
        until it does. An object store may be down too: masks on the disk are served.
        metrics_registry: of this process's metrics. scraped: read by `/metrics`, if
        that is another one (`metrics/multiprocess.py`). schemas: of the app's request bodies. stop:
        ends the server when a signal asked for it and no request runs. Raises Unavailable if Redis
        may evict masks, or has their bytes elsewhere than this server.
        """
        state = cls._build(
            settings,
            engine,
            metrics_registry,
            scraped,
            schemas or RequestSchemas({}),
            removal_delay_s,
            stop,
        )
        try:
            await state.registry.check_server()
            await state.registry.blobs.open()
        except ApiError as error:
            if isinstance(error, BlobsDown):
                logger.warning("%s (%s).", error, error.detail)
            elif not isinstance(error, RegistryDown):
                await state.close()
                raise
        state.cache.trim()
        state.lifecycle.start()
        state.replica.start()
        state.keys.start()
        state.housekeeper.start()
        state.usage.start()
        state.limit_store.start()
        state.budgets.start()
        state.retention.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(state.replica.synced.wait(), _FIRST_SYNC_S)
        return state

    @classmethod
    def _build(
        cls,
        settings: Settings,
        engine: Engine,
        metrics_registry: CollectorRegistry,
        scraped: CollectorRegistry | None,
        schemas: RequestSchemas,
        removal_delay_s: float,
        stop: Callable[[], None],
    ) -> AppState:
        metrics = Metrics(settings.max_mask_labels, metrics_registry)
        connection = RegistryConnection(settings.registry_url)
        store = ObjectStore(settings.blobs_url) if settings.blobs_url else None
        registry = Registry(connection, settings.registry_replicas, store)
        key_connection = RegistryConnection(settings.registry_url, _KEY_CONNECTIONS)
        keys = ApiKeyStore(key_connection, settings.registry_replicas)
        limits = bmt_core.Limits.for_geometry(settings.gates, settings.max_sparsity)
        cache = MaskCache(
            Path(settings.cache_dir),
            registry,
            settings.fingerprint,
            limits,
            settings.mask_cache_bytes,
            metrics.cold_load,
        )
        lifecycle = MaskLifecycle(
            cache,
            engine,
            count_holds=metrics.holds.inc,
            chat_template=settings.chat_template,
            base_config=arithmetic(settings.model_path),
            removal_delay_s=removal_delay_s,
        )
        limit_store = LimitStore(connection, default_limits(settings))
        budgets = Budgets(
            connection,
            limit_store,
            refuse=settings.budget_outage == "refuse",
            on_enforced=metrics.budgets_enforced.set,
        )

        def on_keys_change() -> None:
            keys.invalidate()
            limit_store.invalidate()

        changes = RegistryChanges(lifecycle, settings.fingerprint)
        splits = Splits(registry)
        void_splits = VoidSplits(splits)

        def on_change(key: Key, name: NameState | None) -> None:
            changes.apply(key, name)
            void_splits.look_at(key, name)

        replica = RegistryReplica(
            registry,
            on_change=on_change,
            on_keys_change=on_keys_change,
            on_connection=metrics.registry_up.set,
        )
        resolver = Resolver(replica, lifecycle, engine, settings.fingerprint)
        versions = VersionMetrics(settings.max_mask_labels, metrics_registry)
        sequence_limiter, turns = SequenceLimiter(settings.queue), Turns()
        shadows = Shadows(
            settings.shadow_sequences, resolver, versions, turns, sequence_limiter.half_full
        )
        usage_store = UsageStore(connection, settings.usage_days)
        usage = UsageCounter(usage_store, metrics.usage_lost.inc)
        shutdown = Shutdown(settings.drain_s, stop)
        files = FileStore.of_settings(connection, settings)
        batches, batch_runner = None, None
        if files is not None:
            batches = BatchStore(connection, settings.registry_replicas)
            batch_runner = BatchRunner(
                Parts(
                    settings=settings,
                    store=batches,
                    files=files,
                    engine=engine,
                    schemas=schemas,
                    shutdown=shutdown,
                    metrics=metrics,
                    room=Room(settings.batch_sequences, sequence_limiter),
                )
            )
        housekeeper = Housekeeper(
            registry,
            expired=replica.expired,
            unused=replica.unused,
            on_expired=metrics.expired.inc,
        )
        return cls(
            settings=settings,
            limits=limits,
            engine=engine,
            connection=connection,
            key_connection=key_connection,
            registry=registry,
            splits=splits,
            void_splits=void_splits,
            replica=replica,
            housekeeper=housekeeper,
            retention=Retention(
                registry,
                replica,
                default=Rule(
                    settings.retention_keep_last or None, settings.retention_older_than or None
                ),
                removed=housekeeper.removed,
                in_use=lifecycle.in_use,
            ),
            keys=keys,
            sessions=SessionStore(key_connection),
            cache=cache,
            lifecycle=lifecycle,
            resolver=resolver,
            models=ModelList(replica, engine, settings.fingerprint),
            metrics=metrics,
            versions=versions,
            shadows=shadows,
            collectors=StatsCollectors(
                scraped or metrics_registry,
                settings.stats_dir,
                resolver.public_names,
                ServedBaseCollector(settings),
            ),
            metrics_port=MetricsPort(
                scraped or metrics_registry,
                settings.metrics_host,
                settings.metrics_port,
                Path(settings.stats_dir),
            ),
            usage_store=usage_store,
            usage=usage,
            limit_store=limit_store,
            budgets=budgets,
            meter=UsageMeter(metrics, versions, usage, budgets),
            shutdown=shutdown,
            key_limiter=KeyLimiter(settings.key_concurrency, settings.key_rate),
            sequence_limiter=sequence_limiter,
            uploads=UploadLimiter(settings.max_upload_bytes or limits.max_file_bytes),
            importer=Importer(settings),
            files=files,
            jobs=(JobStore(connection, settings.registry_replicas) if settings.files_url else None),
            batches=batches,
            batch_runner=batch_runner,
            file_uploads=UploadLimiter(settings.max_file_bytes),
            schemas=schemas,
            turns=turns,
        )

    async def close(self) -> None:
        """Stop background tasks, close connections, unregister metrics."""
        self.metrics_port.close()
        if self.batch_runner is not None:
            await self.batch_runner.close()
        await self.shadows.close()
        await self.void_splits.close()
        await self.usage.close()
        await self.budgets.close()
        await self.limit_store.close()
        await self.replica.close()
        await self.retention.close()
        await self.housekeeper.close()
        await self.keys.close()
        await self.lifecycle.close()
        await self.cache.close()
        await self.engine.close()
        await self.connection.close()
        await self.key_connection.close()
        self.collectors.close()
        self.metrics.close()
        self.versions.close()

    async def ready(self) -> bool:
        """True after the first sync, while the engine is healthy and no shutdown has started.

        A registry that becomes unreachable later has no effect: known masks are served without it.
        """
        accepting = self.replica.synced.is_set() and not self.shutdown.started
        return accepting and await self.engine.healthy()

    @property
    def max_upload_bytes(self) -> int:
        """Largest upload: the setting, or the largest valid file of this base model."""
        return self.settings.max_upload_bytes or self.limits.max_file_bytes


def find_app_state(app: Any) -> AppState | None:
    """The AppState of a Starlette app, None before the plugin's `init_state` has stored it."""
    state: AppState | None = getattr(app.state, "bmt", None)
    return state
