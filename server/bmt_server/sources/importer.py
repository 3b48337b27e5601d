"""Import of files from places outside of the registry: the operator's list, bounds, and readers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx2

from bmt_server.errors import RateLimited, Unavailable
from bmt_server.settings import Settings
from bmt_server.sources.allow_list import AllowList
from bmt_server.sources.buckets import read_object
from bmt_server.sources.connections import CheckedNetwork, Resolve, resolve
from bmt_server.sources.hub import endpoint, hub_request
from bmt_server.sources.locations import BucketFile, HubFile, WebFile
from bmt_server.sources.networks import Networks
from bmt_server.sources.web import Fetched, Received, WebReader, WebRequest, unavailable

_AT_ONCE = 16
_OF_A_KEY = 4


def read_sources(import_from: str, import_networks: str) -> tuple[AllowList, Networks]:
    """The values of these settings. Raises SettingsError for those that imports cannot use."""
    allowed, networks = AllowList(import_from), Networks(import_networks)
    if allowed.hub:
        endpoint()
    return allowed, networks


class Importer:
    """Reads files of allowed places. Raises SettingsError for settings that it cannot use.

    resolver: of host names. trust: makes the TLS settings; by default those of SSL_CERT_FILE or of
    the system.
    """

    def __init__(
        self,
        settings: Settings,
        resolver: Resolve = resolve,
        trust: Callable[[], ssl.SSLContext] = httpx2.create_ssl_context,
    ) -> None:
        self._allowed, self._networks = read_sources(settings.import_from, settings.import_networks)
        self._timeout_s = settings.import_timeout_s
        self._resolver = resolver
        self._reader = WebReader(trust)
        self._running = 0
        self._of_key: dict[str, int] = {}

    def check(self, place: WebFile | HubFile | BucketFile) -> None:
        """Raise Forbidden for a place that the operator's list does not have."""
        self._allowed.check(place)

    @contextmanager
    def admit(self, key_id: str) -> Iterator[None]:
        """One import of a key. Raises RateLimited, Unavailable."""
        if self._of_key.get(key_id, 0) >= _OF_A_KEY:
            raise RateLimited(
                f"this key has {_OF_A_KEY} imports running, which is its limit; wait for one to "
                "end",
                code="too_many_at_once",
            )
        if self._running >= _AT_ONCE:
            raise Unavailable(
                f"{_AT_ONCE} imports are running, which is the limit; retry shortly",
                code="imports_full",
            )
        self._running += 1
        self._of_key[key_id] = self._of_key.get(key_id, 0) + 1
        try:
            yield
        finally:
            self._running -= 1
            self._of_key[key_id] -= 1
            if not self._of_key[key_id]:
                del self._of_key[key_id]

    async def read(
        self, place: WebFile | HubFile | BucketFile, max_bytes: int, received: Received
    ) -> Fetched:
        """A file of at most `max_bytes`. Raises ApiError.

        received: called with the size of each part that arrives.
        """
        self.check(place)
        try:
            async with asyncio.timeout(self._timeout_s):
                if isinstance(place, BucketFile):
                    return await read_object(place, self._timeout_s, max_bytes, received)
                if isinstance(place, HubFile):
                    return await self._read_hub(place, max_bytes, received)
                request = WebRequest(place, place.shown, self._allowed.check, {})
                return await self._reader.read(request, self._network(), max_bytes, received)
        except TimeoutError:
            raise unavailable(
                place.shown, f"it takes longer than {self._timeout_s:g} s (--import-seconds)"
            ) from None

    async def _read_hub(self, place: HubFile, max_bytes: int, received: Received) -> Fetched:
        request, commit = hub_request(place, self._allowed)
        fetched = await self._reader.read(request, self._network(), max_bytes, received)
        if not commit.id:
            return fetched
        # A branch moves; the commit is what was read.
        return replace(fetched, source=replace(place, revision=commit.id).shown)

    def _network(self) -> CheckedNetwork:
        return CheckedNetwork(self._networks, self._resolver)
