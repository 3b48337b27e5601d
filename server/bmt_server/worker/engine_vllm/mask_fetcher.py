"""Where a worker finds a mask's laid-out file: on its own node's disk, else in the registry.

On the API process's node the file is there already. A worker elsewhere does not see that disk, so
it fetches the blob by its digest, checks and decodes it as the API process does, and keeps it in
a cache folder of its node. Runs in the loader's threads, never in a step.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import bmt_core
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from bmt_server.ipc.blob import BlobError, blob_key, decode_blob
from bmt_server.ipc.disk_cache import DiskCache, DiskError, DiskFull
from bmt_server.ipc.mask_layout import Layout, LayoutError, LayoutNotFound, map_layout
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.worker_channel import Code
from bmt_server.settings import Settings

# The folder of this node's workers, where it is not the one in the settings. `{rank}` stands for
# the worker's rank, for workers that share a host and are to share nothing else.
FOLDER_ENV = "BMT_WORKER_CACHE_DIR"
# One mask, from the first byte to the last. Callers wait, and a mask is a few megabytes.
FETCH_S = 20.0
_CONNECT_S = 1.0
_ANSWER_S = 5.0
_CHUNK = 1 << 20


class FetchError(Exception):
    """A mask cannot be had on this node. code: as in `channel`; the message says the rest."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code: Code = code


class MaskFetcher:
    """Laid-out files of one worker's node."""

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        self._settings = settings
        chosen = os.environ.get(FOLDER_ENV, "").replace("{rank}", str(rank))
        self.folder = Path(chosen or settings.cache_dir)
        self._limits = bmt_core.Limits.for_geometry(settings.gates, settings.max_sparsity)
        self._disk: DiskCache | None = None
        self._client: redis.Redis | None = None
        self.fetches = 0

    def open(self, source: str) -> Layout:
        """Map the file that an adapter's path means. Raises FetchError, LayoutError.

        A plain file path, as in offline use, is mapped as it is.
        """
        mask = MaskSource.parse(source)
        if mask is None:
            return map_layout(source)
        try:
            return self._map(mask)
        except LayoutNotFound:
            pass
        except LayoutError:
            self._cache().delete(mask.digest)
        # One of this node's workers fetches, the others find what it made.
        with self._cache().write_lock(mask.digest, FETCH_S):
            try:
                return self._map(mask)
            except LayoutError:
                self._fetch(mask)
            return self._map(mask)

    def _map(self, source: MaskSource) -> Layout:
        path = self.folder / DiskCache.name(source.digest)
        layout = map_layout(path)
        if layout.digest != source.digest:
            raise LayoutError(f"{path} holds mask {layout.digest[:12]}…; delete it")
        return layout

    def _cache(self) -> DiskCache:
        if self._disk is None:
            try:
                self._disk = DiskCache(self.folder, self._settings.mask_cache_bytes)
            except OSError as error:
                raise FetchError(
                    f"the worker's cache folder {self.folder} cannot be used ({error}); set "
                    f"{FOLDER_ENV} to one that can",
                    "unavailable",
                ) from None
        return self._disk

    def _fetch(self, source: MaskSource) -> None:
        self.fetches += 1
        blob = self._blob(source)
        disk = self._cache()
        try:
            mask = decode_blob(blob, source, self._settings.fingerprint, self._limits)
            # Mapped at once, and what is mapped may be evicted from the folder.
            disk.store(mask)
        except BlobError as error:
            raise FetchError(str(error), "unusable") from None
        except DiskFull as error:
            raise FetchError(str(error), "full") from None
        except DiskError as error:
            raise FetchError(str(error), "unavailable") from None
        if disk.needs_trim:
            disk.trim()

    def _blob(self, source: MaskSource) -> bytearray:
        what = f"blob {source.file_digest[:12]}… of mask {source.digest[:12]}…"
        if not self._settings.registry_url:
            raise FetchError(f"{what} is not here, and no registry is known", "unavailable")
        if self._client is None:
            self._client = redis.Redis.from_url(
                self._settings.registry_url,
                socket_timeout=_ANSWER_S,
                socket_connect_timeout=_CONNECT_S,
                retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), 1),
            )
        key, data, deadline = blob_key(source.file_digest), bytearray(), time.monotonic() + FETCH_S
        try:
            size = self._client.strlen(key)
            if size > self._limits.max_file_bytes:
                raise FetchError(
                    f"{what} is {size} bytes; a mask of this base has at most "
                    f"{self._limits.max_file_bytes}",
                    "unusable",
                )
            while len(data) < size:
                if time.monotonic() > deadline:
                    raise FetchError(
                        f"{what} did not arrive in {FETCH_S:g} s: {len(data)} of {size} bytes",
                        "unavailable",
                    )
                piece: Any = self._client.getrange(key, len(data), len(data) + _CHUNK - 1)
                if not piece:
                    break
                data += piece
        except (redis.RedisError, OSError) as error:
            raise FetchError(
                f"{what}: the registry does not answer this worker ({error})", "unavailable"
            ) from None
        if not data:
            raise FetchError(f"the registry has no {what}; upload the mask again", "unavailable")
        return data
