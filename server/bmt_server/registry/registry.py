"""The registry in Redis or Valkey: blobs by digest, immutable versions, movable aliases.

Keys, all in one hash slot (`{bmt}`) so that a script may touch several:

    {bmt}:blob:<file digest>        the file's bytes
    {bmt}:name:<tenant>/<name>      hash: rev, latest, pinned, alias:<alias> -> mask digest
    {bmt}:versions:<tenant>/<name>  hash: mask digest -> "<rev>|<id>|<parent>|<version JSON>"
    {bmt}:names                     set of <tenant>/<name> that have versions
    {bmt}:ids                       counter of adapter ids
    {bmt}:generation                counter of changes, for replicas to notice what they missed
    {bmt}:events                    stream of changes

A write is one script that checks first and writes last: neither scripts nor MULTI roll back.
`rev` stays in the name's hash when the last version goes, so it grows across a delete.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from bmt_server.errors import BadRequest, Conflict, NotFound, Unavailable
from bmt_server.ipc.blob import PREFIX, blob_key
from bmt_server.registry.connection import BULK_S, QUICK_S, RegistryConnection
from bmt_server.registry.lua import DELETE_NAME, DELETE_VERSION, PUBLISH, SET_ALIAS, SET_PIN
from bmt_server.registry.schemas import NameState, Version

EVENTS = PREFIX + "events"
NAMES = PREFIX + "names"
IDS = PREFIX + "ids"
GENERATION = PREFIX + "generation"
_CHUNK = 256 * 1024
_DURABLE_MS = 2000
_FEW_NAMES = 16
_STORES = 3


class Registry:
    """Reads and writes of the registry. All raise RegistryDown where Redis does not answer."""

    def __init__(self, connection: RegistryConnection) -> None:
        self.connection = connection
        self._wait_aof = True

    async def check(self) -> None:
        """Refuse a Redis that may evict masks. Raises Unavailable with the setting to change."""
        try:
            found = await self.connection.call(
                lambda: self.connection.quick.config_get("maxmemory-policy")
            )
        except ResponseError:
            return  # CONFIG may be forbidden to this user; the operator has decided then.
        policy = next(iter(found.values()), "noeviction")
        policy = policy.decode() if isinstance(policy, bytes) else policy
        if policy != "noeviction" and not policy.startswith("volatile-"):
            raise Unavailable(
                f"the registry's maxmemory-policy is {policy}, which may drop masks; set it to "
                "noeviction",
                code="registry_may_evict",
            )

    async def publish(
        self,
        version: Version,
        blob: bytes,
        *,
        aliases: Iterable[str] = (),
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> tuple[str, str]:
        """Store a blob, then point the name at it, in one step for every reader.

        Returns (outcome, mask digest) with outcome `created`, `moved` (an older version is latest
        again) or `unchanged`. Raises Conflict where the precondition does not hold.
        """
        bulk = self.connection.bulk
        key = blob_key(version.file_digest)
        where = f"{version.tenant}/{version.name}"
        arguments = [
            version.digest,
            version.to_entry(),
            if_match or "",
            "1" if if_none_match else "",
            *aliases,
        ]
        for _ in range(_STORES):
            await self.connection.call(lambda: bulk.set(key, blob, nx=True), BULK_S)
            outcome, current = await self._script(PUBLISH, where, [key], arguments)
            if outcome != "blob_unknown":
                break  # else a sweep took an old orphan of the same bytes between the two
        if outcome == "conflict":
            raise _lost(version.name, current)
        if outcome == "blob_unknown":
            raise Unavailable("the registry lost the mask's bytes at once", code="not_durable")
        await self._durable()
        return outcome, version.digest

    async def set_alias(
        self, tenant: str, name: str, alias: str, digest: str | None, if_match: str | None = None
    ) -> None:
        """Point an alias, or `latest`, at a version; None removes it. Raises Conflict, NotFound."""
        outcome, current = await self._script(
            SET_ALIAS, f"{tenant}/{name}", [], [alias, digest or "", if_match or ""]
        )
        self._expect(outcome, name, alias, current)
        await self._durable()

    async def delete_name(self, tenant: str, name: str, if_match: str | None = None) -> None:
        """Remove all versions and aliases of a name; its rev is kept. Raises NotFound, Conflict."""
        outcome, current = await self._script(DELETE_NAME, f"{tenant}/{name}", [], [if_match or ""])
        self._expect(outcome, name, None, current)
        await self._durable()

    async def delete_version(self, tenant: str, name: str, digest: str) -> None:
        """Remove one version. Raises NotFound, and Conflict where an alias points at it."""
        outcome, alias = await self._script(DELETE_VERSION, f"{tenant}/{name}", [], [digest])
        if outcome == "in_use":
            raise Conflict(
                f"{name}@{digest[:12]} is {name}:{alias}; move that alias first", code="in_use"
            )
        self._expect(outcome, name, None, alias)
        await self._durable()

    async def set_pin(self, tenant: str, name: str, pinned: bool) -> None:
        """Mark a name's latest version as not to be evicted, or end that. Raises NotFound."""
        outcome, _ = await self._script(SET_PIN, f"{tenant}/{name}", [], ["1" if pinned else ""])
        self._expect(outcome, name, None, "")

    async def blob(self, digest: str, size: int) -> bytearray:
        """A file's bytes, read in pieces: not hashed yet. Raises NotFound.

        size: as its version says; a blob of another size is damaged and will not hash right.
        """
        key, data = blob_key(digest), bytearray()
        # One large reply would hold this process's event loop for its whole length. The first
        # piece tells within a second that the registry hangs.
        client, within_s = self.connection.quick, QUICK_S
        while len(data) < size:
            at = len(data)
            read = partial(client.getrange, key, at, at + _CHUNK - 1)
            piece = await self.connection.call(read, within_s)
            if not piece:
                break
            data += piece
            client, within_s = self.connection.bulk, BULK_S
        if not data:
            raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
        return data

    async def blob_size(self, digest: str) -> int:
        """The blob's size in bytes, 0 where it is not there."""
        return int(
            await self.connection.call(lambda: self.connection.quick.strlen(blob_key(digest)))
        )

    async def names(self) -> list[tuple[str, str]]:
        """(tenant, name) of every name that has versions."""
        members = await self.connection.call(lambda: self.connection.bulk.smembers(NAMES), BULK_S)
        return [tuple(m.decode().split("/", 1)) for m in members]  # type: ignore[misc]

    async def generation(self) -> int:
        value = await self.connection.call(lambda: self.connection.quick.get(GENERATION))
        return int(value or 0)

    async def cursor(self) -> tuple[int, bytes]:
        """The counter of changes and the last event. Both: after a failover that lost changes, the
        counter may come to where it was by other ones."""

        async def read() -> list[Any]:
            async with self.connection.quick.pipeline(transaction=True) as pipe:
                pipe.get(GENERATION)
                pipe.xrevrange(EVENTS, count=1)
                return await pipe.execute()

        generation, newest = await self.connection.call(read)
        return int(generation or 0), newest[0][0] if newest else b"0"

    async def states(self, names: Iterable[tuple[str, str]]) -> list[NameState]:
        """What is held under each name, each read in one transaction."""
        wanted = list(names)
        # A request may wait for a few names; only a whole registry may take its time.
        few = len(wanted) <= _FEW_NAMES
        client, within_s = (
            (self.connection.quick, QUICK_S) if few else (self.connection.bulk, BULK_S)
        )

        async def read() -> list[Any]:
            async with client.pipeline(transaction=True) as pipe:
                for tenant, name in wanted:
                    pipe.hgetall(_name(f"{tenant}/{name}"))
                    pipe.hgetall(_versions(f"{tenant}/{name}"))
                return await pipe.execute()

        replies = await self.connection.call(read, within_s) if wanted else []
        return [
            _state(tenant, name, replies[2 * i], replies[2 * i + 1])
            for i, (tenant, name) in enumerate(wanted)
        ]

    async def _script(
        self, source: str, where: str, keys: list[str], args: list[str]
    ) -> tuple[str, str]:
        all_keys = [_name(where), _versions(where), NAMES, EVENTS, IDS, GENERATION, *keys]
        script = self.connection.quick.register_script(source)
        reply = await self.connection.call(lambda: script(keys=all_keys, args=[where, *args]))
        outcome, detail = (r.decode() for r in reply)
        return outcome, detail

    async def _durable(self) -> None:
        """Wait until the write is on the server's disk, where it keeps an append-only file."""
        if not self._wait_aof:
            return
        try:
            local, _ = await self.connection.call(
                lambda: self.connection.bulk.execute_command("WAITAOF", 1, 0, _DURABLE_MS), BULK_S
            )
        except ResponseError:
            self._wait_aof = False  # an older server, or one without an append-only file
            return
        if not local:
            raise Unavailable("the registry did not confirm the write on disk", code="not_durable")

    def _expect(self, outcome: str, name: str, alias: str | None, current: str) -> None:
        if outcome == "conflict":
            raise _lost(name, current)
        if outcome == "unknown":
            raise NotFound(f"no mask {name}{':' + alias if alias else ''}", code="mask_not_found")
        if outcome != "ok":
            raise BadRequest(f"the registry refused: {outcome}")


def _lost(name: str, current: str) -> Conflict:
    now = f"it is {name}@{current[:12]}" if current else "it does not exist"
    return Conflict(f"{name} is not what the request expects: {now}. Look again and retry")


def _name(where: str) -> str:
    return f"{PREFIX}name:{where}"


def _versions(where: str) -> str:
    return f"{PREFIX}versions:{where}"


def _state(tenant: str, name: str, head: dict[bytes, bytes], raw: dict[bytes, bytes]) -> NameState:
    fields = {k.decode(): v.decode() for k, v in head.items()}
    versions = {}
    for digest, value in raw.items():
        rev, identity, parent, text = value.decode().split("|", 3)
        version = Version.from_entry(text)
        versions[digest.decode()] = version.model_copy(
            update={"rev": int(rev), "id": int(identity), "parent": parent or None}
        )
    return NameState(
        tenant=tenant,
        name=name,
        rev=int(fields.get("rev", 0)),
        latest=fields.get("latest") or None,
        pinned=fields.get("pinned") == "1",
        aliases={k[6:]: v for k, v in fields.items() if k.startswith("alias:")},
        versions=versions,
    )
