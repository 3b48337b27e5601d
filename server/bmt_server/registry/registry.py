"""Mask registry in Redis or Valkey: blobs by digest, immutable versions, movable aliases.

Keys share one hash slot (`{bmt}`), so that a script may use several of them::

    {bmt}:blob:<file digest>        the file's bytes, unless an object store has them (`blobs/`)
    {bmt}:objects                   hash: file digest, 32 bytes -> "<size>|<mark>" of its object
    {bmt}:loose                     sorted set of objects without such a record, by time
    {bmt}:place                     hash: the object store's URL, and where blobs are written
    {bmt}:name:<tenant>/<name>      hash: rev, latest, pinned, expires (seconds since 1970),
                                    retention (rule), alias:<alias> -> mask digest, and the
                                    split of an alias (`canary/split.py`)
    {bmt}:versions:<tenant>/<name>  hash: mask digest -> "<rev>|<id>|<parent>|<version JSON>"
    {bmt}:names                     set of <tenant>/<name> that have versions
    {bmt}:holds                     hash: <tenant>/<name>@<digest> that requests use -> end of hold
    {bmt}:ids                       counter of adapter ids
    {bmt}:generation                counter of changes, which reveals missed events to a replica
    {bmt}:events                    stream of changes
    {bmt}:written                   hash: path of the last write that changed nothing else

Each write is one script that checks first and writes last, because neither scripts nor MULTI roll
back. `rev` stays in the name's hash when the last version is deleted, so it grows across a delete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from bmt_server.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    RegistryDown,
    RegistryFull,
    Unavailable,
)
from bmt_server.ipc.blob import OBJECTS, PREFIX, blob_key
from bmt_server.ipc.object_store import ObjectStore
from bmt_server.registry.blobs.in_objects import ObjectBlobs
from bmt_server.registry.blobs.in_redis import LOOSE, RedisBlobs, raw
from bmt_server.registry.blobs.place import PLACE, join
from bmt_server.registry.blobs.protocol import Blobs
from bmt_server.registry.connection import BULK_S, RegistryConnection
from bmt_server.registry.durability import Durability
from bmt_server.registry.lua import DELETE_NAME, DELETE_VERSION, PRUNE, PUBLISH, SET_ALIAS, SET_PIN
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.reader import GENERATION, NAMES, NameReader, name_key, versions_key
from bmt_server.registry.names.versions import Versions
from bmt_server.registry.schemas import Version
from bmt_server.registry.server_state import read_state
from bmt_server.registry.usage.quota import BEHIND, OVER, Quota, quota_key

logger = logging.getLogger("vllm.bmt_server")

EVENTS = PREFIX + "events"
IDS = PREFIX + "ids"
WRITTEN = PREFIX + "written"
_MAX_EVENTS = 500
PRUNED_AT_ONCE = 200
Event = dict[bytes, bytes]
Cursor = tuple[int, bytes]  # counter of changes and id of the last event
_PUBLISH_ATTEMPTS = 3
# Outcomes of scripts that changed something, or found that an earlier one had.
_WROTE = {"created", "moved", "unchanged", "ok"}


class Registry:
    """Reads and writes of the registry. All methods raise RegistryDown if Redis does not answer.

    blobs: where the masks' bytes are.
    """

    def __init__(
        self, connection: RegistryConnection, replicas: int = 0, store: ObjectStore | None = None
    ) -> None:
        """replicas: number of replicas that must have a write before it is acknowledged.

        store: of the masks' bytes; None for Redis.
        """
        self.connection = connection
        self.blobs: Blobs = RedisBlobs(connection)
        if store is not None:
            self.blobs = ObjectBlobs(connection, store)
        self.reader = NameReader(connection)
        # Set when an upload finds no memory; the housekeeper waits for it.
        self.full = asyncio.Event()
        self._durability = Durability(connection, replicas)
        self._unfit: ApiError | None = None
        self._warned: list[str] = []

    @classmethod
    async def recorded(cls, connection: RegistryConnection) -> Registry:
        """The registry with the object store that it records, as commands use it."""
        place = await join(connection)
        return cls(connection, store=ObjectStore(place.url) if place.url else None)

    async def check_server(self) -> None:
        """Look at the server's role, eviction policy, durability and place of blobs.

        For each new connection. Raises RegistryDown, and Unavailable with the setting to change if
        it may drop masks, or has their bytes elsewhere. Until a later check passes, `publish`
        raises that too.
        """
        state = await read_state(self.connection)
        try:
            state.check()
            await self.blobs.check()
        except RegistryDown:
            self.connection.leave()
            await self.connection.drop()
            raise
        except ApiError as error:
            self._unfit = error
            raise
        self._unfit = None
        self._durability.learn(state)
        warnings = state.warnings()
        for warning in warnings:
            if warning not in self._warned:
                logger.warning("%s.", warning[0].upper() + warning[1:])
        self._warned = warnings

    async def publish(
        self,
        version: Version,
        blob: bytes,
        *,
        aliases: Iterable[str] = (),
        if_match: str | None = None,
        if_none_match: bool = False,
        expires: int | None = None,
        quota: Quota | None = None,
    ) -> tuple[str, str]:
        """Store a blob, then move the name to it in one step for all readers.

        expires: the time from which the servers may remove the name, seconds since 1970; None:
        never, whatever an earlier upload said. quota: of the tenant, None without one.

        Returns (outcome, mask digest); the outcome is `created`, `moved` (an older version is
        latest again) or `unchanged`, or one of `usage/quota.py`.
        Raises Conflict if the precondition does not hold.
        """
        digest = version.file_digest
        path = f"{version.tenant}/{version.name}"
        arguments: list[str | bytes] = [
            version.digest,
            version.to_entry(),
            if_match or "",
            "1" if if_none_match else "",
            "" if expires is None else str(expires),
        ]
        keys = [blob_key(digest), OBJECTS, LOOSE, PLACE, quota_key(version.tenant)]
        if self._unfit is not None:
            raise self._unfit
        try:
            for _ in range(_PUBLISH_ATTEMPTS):
                staged = await self.blobs.stage(digest, blob)
                records = (o.record if o else "" for o in (staged.written, staged.replaces))
                bytes_at: list[str | bytes] = [raw(digest), staged.place, *records]
                words = quota.words() if quota is not None else ""
                outcome, current = await self.run_script(
                    PUBLISH, path, keys, [*arguments, *bytes_at, words, *aliases]
                )
                if outcome == "blobs_elsewhere":
                    await self.blobs.check()
                elif outcome != "blob_unknown":
                    break  # else an old orphan of the same bytes was removed in between
        except RegistryFull:
            self.full.set()
            raise
        if outcome in (OVER, BEHIND):
            await self.blobs.discard(staged)
            return outcome, current
        if outcome == "conflict":
            await self.blobs.discard(staged)
            raise _precondition_failed(version.name, current)
        if outcome in ("blob_unknown", "blobs_elsewhere"):
            raise Unavailable(
                "the registry lost the mask's bytes right after the upload; upload it again",
                code="not_durable",
            )
        return outcome, version.digest

    async def set_alias(
        self, tenant: str, name: str, alias: str, digest: str | None, if_match: str | None = None
    ) -> None:
        """Point an alias, or `latest`, at a version; None removes it. Raises Conflict, NotFound.

        Its canary and its shadow end with that.
        """
        outcome, current = await self.run_script(
            SET_ALIAS, f"{tenant}/{name}", [], [alias, digest or "", if_match or ""]
        )
        self.expect_ok(outcome, name, alias, current)

    async def delete_name(
        self, tenant: str, name: str, if_match: str | None = None, *, only_plain: bool = False
    ) -> None:
        """Remove all versions and aliases of a name; its rev is kept. Raises NotFound, Conflict.

        only_plain: not with an alias, a pin or a rule of retention; Forbidden then.
        """
        arguments = [if_match or "", "", "1" if only_plain else ""]
        outcome, current = await self.run_script(DELETE_NAME, f"{tenant}/{name}", [], arguments)
        if outcome == "kept":
            kind, _, alias = current.partition(":")
            kept = {"pinned": "a pin", "retention": "a retention rule"}.get(kind, f"alias {alias}")
            raise Forbidden(f"{name} has {kept}; to remove it needs a key with the scope 'admin'")
        self.expect_ok(outcome, name, None, current)

    async def delete_expired(self, tenant: str, name: str, now: float) -> bool:
        """Remove a name that has expired and is not pinned; False if there is none.

        An upload that renews the expiry meanwhile keeps it. now: seconds since 1970.
        """
        arguments = ["", str(int(now))]
        outcome, _ = await self.run_script(DELETE_NAME, f"{tenant}/{name}", [], arguments)
        return outcome == "ok"

    async def delete_version(self, tenant: str, name: str, digest: str) -> None:
        """Remove one version. Raises NotFound, and Conflict if an alias or its split names it."""
        outcome, alias = await self.run_script(DELETE_VERSION, f"{tenant}/{name}", [], [digest])
        if outcome == "in_use":
            part, colon, of = alias.partition(":")
            what = f"{name}:{alias}; move that alias first"
            if colon:
                what = f"the {part} of {name}:{of}; promote it, or roll it back first"
            raise Conflict(f"{name}@{digest[:12]} is {what}", code="in_use")
        self.expect_ok(outcome, name, None, alias)

    async def prune(self, tenant: str, name: str, digests: Sequence[str]) -> list[str]:
        """Remove versions that neither `latest`, nor an alias, nor a split names. Raises NotFound.

        Returns the digests of those that were removed.
        """
        removed: list[str] = []
        for at in range(0, len(digests), PRUNED_AT_ONCE):
            some = list(digests[at : at + PRUNED_AT_ONCE])
            outcome, gone = await self.run_script(PRUNE, f"{tenant}/{name}", [], some)
            self.expect_ok(outcome, name, None, "")
            removed += gone.split()
        return removed

    async def set_pin(self, tenant: str, name: str, pinned: bool) -> None:
        """Exempt a name's latest version from eviction, or end the exemption. Raises NotFound."""
        outcome, _ = await self.run_script(SET_PIN, f"{tenant}/{name}", [], ["1" if pinned else ""])
        self.expect_ok(outcome, name, None, "")

    async def blob(self, digest: str, size: int) -> bytearray:
        """Read a file's bytes without hashing them. Raises NotFound.

        size: as stated by the version; a blob of another size is damaged, and its hash differs.
        """
        return await self.blobs.read(digest, size)

    async def blob_size(self, digest: str) -> int:
        """Size of a blob in bytes; 0 if it does not exist."""
        (size,) = await self.blob_sizes([digest])
        if not size:
            await self.blobs.check()  # it may be where this server does not look
        return size

    async def blob_sizes(self, digests: list[str]) -> list[int]:
        """Sizes of blobs in bytes, in the order of `digests`; 0 for those that do not exist."""
        return await self.blobs.sizes(digests)

    async def names(self) -> list[tuple[str, str]]:
        """(tenant, name) of every name that has versions."""
        return list({name: None async for page in self.reader.pages() for name in page})

    async def generation(self) -> int:
        """Counter of changes."""
        value = await self.connection.call(lambda: self.connection.quick.get(GENERATION))
        return int(value or 0)

    async def cursor(self) -> Cursor:
        """Counter of changes and id of the last event.

        After a failover that lost changes, other changes may bring the counter back to its old
        value; the event id differs then.
        """

        async def read() -> list[Any]:
            async with self.connection.quick.pipeline(transaction=True) as pipe:
                pipe.get(GENERATION)
                pipe.xrevrange(EVENTS, count=1)
                replies: list[Any] = await pipe.execute()
                return replies

        generation, newest = await self.connection.call(read)
        return int(generation or 0), newest[0][0] if newest else b"0"

    async def events_between(
        self, before: Cursor, after: Cursor
    ) -> list[dict[bytes, bytes]] | None:
        """Events after one cursor up to another one; None if they do not explain the difference.

        After a failover that lost changes, the last event of `before` is not there.
        """
        (generation, last), bulk = before, self.connection.bulk
        if not generation <= after[0] <= generation + _MAX_EVENTS:
            return None
        start = "-" if last == b"0" else last
        entries = await self.connection.call(
            lambda: bulk.xrange(EVENTS, start, after[1], count=2 * _MAX_EVENTS), BULK_S
        )
        if last != b"0":
            if not entries or entries[0][0] != last:
                return None
            entries = entries[1:]
        events: list[Event] = [fields for _, fields in entries]
        return events if follow_each_other(generation, events, after[0]) else None

    async def states(self, names: Iterable[tuple[str, str]]) -> list[NameState]:
        """State of each (tenant, name), each read at one time if it has few versions."""
        return [
            NameState.of_head(
                read.tenant,
                read.name,
                read.head,
                Versions({d: entry for d, entry in read.entries.items() if entry is not None}),
                read.generation,
                read.unreadable,
            )
            for read in await self.reader.read(dict.fromkeys(names))
        ]

    async def run_script(
        self, source: str, path: str, keys: list[str], args: Sequence[str | bytes]
    ) -> tuple[str, str]:
        """Run a script in the form of `lua.py` on a name. Returns (outcome, detail) once durable.

        Raises Unavailable (`not_durable`) if that is not confirmed in time.
        """
        all_keys = [name_key(path), versions_key(path), NAMES, EVENTS, IDS, GENERATION, WRITTEN]
        reply, confirmed = await self._durability.run(source, [*all_keys, *keys], [path, *args])
        outcome, detail = (r.decode() for r in reply)
        if outcome in _WROTE:
            self._durability.check(confirmed)
        return outcome, detail

    def expect_ok(self, outcome: str, name: str, alias: str | None, current: str) -> None:
        if outcome == "conflict":
            raise _precondition_failed(name, current)
        if outcome == "unknown":
            raise NotFound(f"no mask {name}{':' + alias if alias else ''}", code="mask_not_found")
        if outcome != "ok":
            raise BadRequest(f"the registry refused: {outcome}")


def follow_each_other(generation: int, events: Iterable[Event], last: int | None = None) -> bool:
    """True if no change is missing after `generation`, between events, and up to `last`."""
    counted = [int(e.get(b"generation", 0)) for e in events if e.get(b"kind") != b"keys"]
    end = generation + len(counted) if last is None else last
    return counted == list(range(generation + 1, end + 1))


def _precondition_failed(name: str, current: str) -> Conflict:
    now = f"it is {name}@{current[:12]}" if current else "it does not exist"
    return Conflict(f"{name} is not what the request expects: {now}. Read it again and retry")
