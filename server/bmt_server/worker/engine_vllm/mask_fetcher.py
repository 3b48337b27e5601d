"""Laid-out masks of a worker's node: from its cache folder, else fetched from the registry.

A worker on the API process's node finds the file in the shared cache folder. A worker on another
node fetches the blob by its digest and installs it in a cache folder of its own node, through the
cold path that API processes use too (`ipc/cold_path.py`). Runs in the loader's threads, never in
a step.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bmt_core
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from bmt_server.errors import ApiError
from bmt_server.ipc import mask_flips
from bmt_server.ipc.blob import OBJECTS, BlobError, StoredObject, blob_key, blob_ranges
from bmt_server.ipc.cold_path import ColdPath, map_cached
from bmt_server.ipc.disk_cache import DiskCache, DiskError, DiskFull
from bmt_server.ipc.mask_layout import Layout, LayoutError, map_layout
from bmt_server.ipc.mask_source import MaskSource
from bmt_server.ipc.object_store import ObjectStore, SizeDiffers
from bmt_server.ipc.registry_address import RegistryAddress
from bmt_server.ipc.worker_channel import Code
from bmt_server.settings import Settings

logger = logging.getLogger("vllm.bmt_server")

# Overrides the settings' cache folder for the workers of this node. `{rank}` stands for the
# worker's rank, for workers that share a host but must not share a folder.
FOLDER_ENV = "BMT_WORKER_CACHE_DIR"
# Bound on the fetch of one mask, which is a few megabytes. Requests wait for it.
FETCH_S = 20.0
_CONNECT_S = 1.0
_ANSWER_S = 5.0
_CHUNK = 1 << 20
_READS = 3


class FetchError(Exception):
    """This node cannot provide a mask. code: as in `ipc/worker_channel.py`."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code: Code = code


class MaskFetcher:
    """Laid-out files for one worker. Safe to use from several threads."""

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        self._settings = settings
        folder = os.environ.get(FOLDER_ENV, "").replace("{rank}", str(rank))
        self.folder = Path(folder or settings.cache_dir)
        self._limits = bmt_core.Limits.for_geometry(settings.gates, settings.max_sparsity)
        self._cold_path: ColdPath | None = None
        self._client: Any = None
        self._objects: ObjectStore | None = None
        if settings.blobs_url:
            self._objects = ObjectStore(settings.blobs_url, FETCH_S)
        self._offline: Layout | None = None  # the mask that was opened last
        self.fetches = 0

    def open(self, source: str) -> Layout:
        """Map the file of an adapter's path. Raises FetchError, LayoutError.

        A plain file path, as in offline use, is mapped directly; flips are of the one before.
        """
        mask = MaskSource.parse(source)
        if mask is None:
            self._offline = self._opened_offline(source)
            return self._offline
        # Mapping needs no write access to the folder.
        with suppress(LayoutError):
            return map_cached(self.folder, mask)
        try:
            return self._opened_cold_path().open(mask, self._fetch, FETCH_S)
        except BlobError as error:
            raise FetchError(str(error), "unusable") from None
        except DiskFull as error:
            raise FetchError(str(error), "full") from None
        except DiskError as error:
            raise FetchError(str(error), "unavailable") from None

    def _opened_offline(self, path: str) -> Layout:
        if not path.endswith(mask_flips.SUFFIX):
            return map_layout(path)
        if self._offline is None:
            raise LayoutError(f"flips {path} are of no mask before; push the whole mask")
        return mask_flips.flipped(self._offline, path)

    def _opened_cold_path(self) -> ColdPath:
        if self._cold_path is None:
            try:
                disk = DiskCache(self.folder, self._settings.mask_cache_bytes)
            except OSError as error:
                raise FetchError(
                    f"the worker's cache folder {self.folder} cannot be used ({error}); set "
                    f"{FOLDER_ENV} to a writable folder",
                    "unavailable",
                ) from None
            self._cold_path = ColdPath(disk, self._settings.fingerprint, self._limits)
        return self._cold_path

    def _fetch(self, source: MaskSource) -> bytearray:
        """Read a blob from the registry, not verified yet. Raises FetchError."""
        self.fetches += 1
        what = f"blob {source.file_digest[:12]}… of mask {source.digest[:12]}…"
        if not self._settings.registry_url:
            raise FetchError(f"{what} is not on this node, and no registry is set", "unavailable")
        try:
            # A move between Redis and the object store puts the bytes to one place before it takes
            # them from the other: look again.
            for _ in range(_READS):
                data = self._from_object(source, what) or self._from_redis(source, what)
                if data:
                    return data
        except (redis.RedisError, OSError) as error:
            # The cause has the registry's address, and the message reaches clients.
            logger.warning("%s: the registry does not answer this worker (%s).", what, error)
            raise FetchError(
                f"{what}: the registry does not answer this worker", "unavailable"
            ) from None
        raise FetchError(f"the registry has no {what}; upload the mask again", "unavailable")

    def _from_object(self, source: MaskSource, what: str) -> bytearray | None:
        """The bytes of the blob's object; None if it has none."""
        digest = source.file_digest
        field = bytes.fromhex(digest)
        _, record = self._ask(lambda client: client.hget(self._address.key(OBJECTS), field))
        stored = StoredObject.parse(digest, record)
        if stored is None:
            return None
        if self._objects is None:
            raise FetchError(
                f"{what} is in an object store, and the server has no --blobs", "unavailable"
            )
        self._check_size(what, stored.size)
        try:
            return self._objects.get_blocking(stored.name, stored.size)
        except SizeDiffers as error:
            raise FetchError(f"{what}: {error}; upload the mask again", "unusable") from None
        except ApiError as error:
            detail = getattr(error, "detail", "")
            logger.warning("%s: %s (%s).", what, error, detail)
            raise FetchError(f"{what}: {error}", "unavailable") from None

    def _from_redis(self, source: MaskSource, what: str) -> bytearray:
        """The blob's bytes in Redis; empty if there are none, or not all any more."""
        data, deadline = bytearray(), time.monotonic() + FETCH_S
        key = self._address.key(blob_key(source.file_digest))
        client, size = self._ask(lambda client: client.strlen(key))
        self._check_size(what, size)
        for start, end in blob_ranges(data, size, _CHUNK):
            if time.monotonic() > deadline:
                raise FetchError(
                    f"{what} did not arrive in {FETCH_S:g} s: {len(data)} of {size} bytes",
                    "unavailable",
                )
            piece: Any = client.getrange(key, start, end)
            data += piece
        return data if len(data) == size else bytearray()

    @property
    def _address(self) -> RegistryAddress:
        return RegistryAddress.parse(self._settings.registry_url)

    def _check_size(self, what: str, size: int) -> None:
        if size > self._limits.max_file_bytes:
            raise FetchError(
                f"{what} is {size} bytes; a mask of this base has at most "
                f"{self._limits.max_file_bytes}",
                "unusable",
            )

    def _ask(self, command: Callable[[Any], Any]) -> tuple[Any, Any]:
        """A client that may read a blob's key, and its reply to a command."""
        client = self._connected(self._address)
        try:
            return client, command(client)
        except redis.exceptions.MovedError:
            self._client = None
            client = self._connected(self._address.as_cluster())
            return client, command(client)

    def _connected(self, address: RegistryAddress) -> Any:
        if self._client is None:
            self._client = address.blocking_client(
                socket_timeout=_ANSWER_S,
                socket_connect_timeout=_CONNECT_S,
                retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), 1),
            )
        return self._client
