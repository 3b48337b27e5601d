"""Parts of an API process that batches need."""

from __future__ import annotations

from dataclasses import dataclass

from bmt_server.api.batches.room import Room
from bmt_server.api.body.schemas import RequestSchemas
from bmt_server.api.engine import Engine
from bmt_server.api.metrics.counters import Metrics
from bmt_server.api.shutdown import Shutdown
from bmt_server.registry.batches.store import BatchStore
from bmt_server.registry.files.store import FileStore
from bmt_server.settings import Settings


@dataclass(frozen=True)
class Parts:
    """Parts of the process."""

    settings: Settings
    store: BatchStore
    files: FileStore
    engine: Engine
    schemas: RequestSchemas
    shutdown: Shutdown
    metrics: Metrics
    room: Room
