"""Work of tenants in the registry, as of jobs and batches: records, queue, leases, seconds, lists.

    {bmt}:<many>                  hash: id -> record, JSON
    {bmt}:<many>-of:<tenant>      sorted set of the tenant's ids, by time of creation
    {bmt}:<many>-open:<tenant>    set of those of them that have not ended
    {bmt}:<one>-queue:<base>      sorted set of <tenant>/<id> that wait, by time of creation
    {bmt}:<one>-leases:<base>     sorted set of <tenant>/<id> that run, by end of the lease
    {bmt}:<one>-seconds           hash: tenant -> worker milliseconds that it had
    {bmt}:<one>-<items>:<id>      list of items, JSON: a job's events, parts of a batch's answers

Every change compares the record that it was made from, in one script, and is made again from the
new one if another server was first. Times are of the registry's clock.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from bmt_server.errors import ApiError, NotFound, Unavailable
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import BULK_S, RegistryConnection
from bmt_server.registry.durability import Durability
from bmt_server.registry.leased.record import WorkRecord
from bmt_server.registry.leased.scripts import CHANGE, CREATE

_WRITTEN = PREFIX + "written"
_ATTEMPTS = 16
#: Records that are read and parsed at once: other requests have their turn in between.
PIECE = 50

R = TypeVar("R", bound=WorkRecord)


@dataclass(frozen=True)
class Change(Generic[R]):
    """The next record, further items of its list, and what changes with them.

    spent_ms: worker time to add to its tenant's; least_ms: the least that the tenant has then.
    """

    record: R
    items: Sequence[BaseModel] = ()
    spent_ms: int = 0
    least_ms: int = 0


@dataclass(frozen=True)
class Waiting:
    """The work of one base that waits or runs, with the worker time that each tenant had.

    queued: tenant, id and second of creation, the oldest first; leased: tenant, id and end of the
    lease.
    """

    now_ms: int
    queued: Sequence[tuple[str, str, int]] = ()
    leased: Sequence[tuple[str, str, int]] = ()
    spent_ms: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """Words of the registry's keys, and the form of an id."""

    one: str
    many: str
    items: str
    id: re.Pattern[str]


class WorkStore(ABC, Generic[R]):
    """Work of all tenants. Methods raise RegistryDown."""

    names: Names

    def __init__(self, connection: RegistryConnection, replicas: int = 0) -> None:
        self._connection = connection
        self._durability = Durability(connection, replicas)

    @abstractmethod
    def _read(self, data: bytes | None) -> R | None:
        """Parse a record; None for one that is missing, forged or of another version."""

    @abstractmethod
    def _not_found(self, work_id: str) -> NotFound:
        """The error for what does not exist for this key."""

    async def _create(
        self,
        record: R,
        items: Sequence[BaseModel],
        *,
        least_ms: int,
        most_open: int,
        most_kept: int,
        too_many: ApiError,
    ) -> R:
        """Keep a new record. Raises `too_many` beyond the tenant's bound on those that are open."""
        record = record.extended(len(items))
        tenant = record.tenant
        keys = [self._key(""), self._queue(record.base), self._seconds(), self._of(tenant)]
        args = [record.id, record.model_dump_json(), record.path, record.queued_at, tenant]
        args += [str(least_ms), str(time.time()), str(most_open), str(most_kept), self._list("")]
        reply, confirmed = await self._durability.run(
            CREATE,
            [*keys, self._open(tenant), _WRITTEN],
            [*args, *(item.model_dump_json() for item in items)],
        )
        outcome = reply[0].decode()
        if outcome == "too_many":
            raise too_many
        if outcome != "ok":
            raise Unavailable(f"another {self.names.one} has the same id; try again")
        self._durability.check(confirmed)
        return record

    async def get(self, tenant: str, work_id: str) -> R:
        """One record of a tenant. Raises NotFound."""
        record = await self.find(work_id)
        if record is None or record.tenant != tenant:
            raise self._not_found(work_id)
        return record

    async def find(self, work_id: str) -> R | None:
        """One record of any tenant."""
        return self._read(await self._raw(work_id))

    async def of_tenant(self, tenant: str, after: str | None = None) -> AsyncIterator[R]:
        """A tenant's records, the newest first, from the one after `after`. Raises NotFound."""
        bulk, key, start = self._connection.bulk, self._of(tenant), 0
        if after is not None:
            rank = await self._connection.call(lambda: bulk.zrevrank(key, after))
            if rank is None:
                raise self._not_found(after)
            start = rank + 1
        ids = await self._connection.call(lambda: bulk.zrevrange(key, start, -1), BULK_S)
        for at in range(0, len(ids), PIECE):
            read = partial(bulk.hmget, self._key(""), ids[at : at + PIECE])
            for data in await self._connection.call(read, BULK_S):
                record = self._read(data)
                if record is not None and record.tenant == tenant:
                    yield record

    async def listed(self, work_id: str, start: int, end: int) -> list[bytes]:
        """Items of a record's list, from `start` to before `end`."""
        if end <= start:
            return []
        bulk, key = self._connection.bulk, self._list(work_id)
        found: list[bytes] = await self._connection.call(
            lambda: bulk.lrange(key, start, end - 1), BULK_S
        )
        return found

    async def change(
        self, work_id: str, make: Callable[[R, int], Change[R] | None]
    ) -> tuple[R, bool]:
        """Change a record by `make`, which gets it and the registry's time in ms.

        make: None changes nothing; it may be called several times, and may raise. Returns the
        record, and if it was changed. Raises NotFound.
        """
        for _ in range(_ATTEMPTS):
            raw, now_ms = await self._raw_and_time(work_id)
            record = self._read(raw)
            if record is None or raw is None:
                raise self._not_found(work_id)
            wanted = make(record, now_ms)
            if wanted is None:
                return record, False
            if (made := await self._write(raw, wanted)) is not None:
                return made, True
        raise Unavailable(f"{work_id} changes too often; try again shortly")

    async def waiting(self, base: str) -> Waiting:
        """The work of a base that waits or runs."""
        bulk = self._connection.bulk

        async def read() -> list[Any]:
            async with bulk.pipeline(transaction=True) as pipe:
                pipe.time()
                pipe.zrange(self._queue(base), 0, -1, withscores=True)
                pipe.zrange(self._leases(base), 0, -1, withscores=True)
                pipe.hgetall(self._seconds())
                replies: list[Any] = await pipe.execute()
                return replies

        clock, queued, leased, spent = await self._connection.call(read, BULK_S)
        return Waiting(
            _ms(clock),
            [(*path, int(at)) for member, at in queued if (path := self._path(member)) is not None],
            [
                (*path, int(end))
                for member, end in leased
                if (path := self._path(member)) is not None
            ],
            {_text(tenant): int(ms) for tenant, ms in spent.items() if ms.isdigit()},
        )

    @property
    def up_for_ms(self) -> float:
        """Time for which holders of leases could prolong them through this process."""
        return 1000 * self._connection.up_for_s

    async def exists(self, work_id: str) -> bool:
        """True for an id with any record, also one that cannot be read."""
        return await self._raw(work_id) is not None

    async def drop(self, base: str, tenant: str, work_id: str) -> None:
        """Take an entry without a valid record out of queue and leases."""
        quick, member = self._connection.quick, f"{tenant}/{work_id}"

        async def remove() -> None:
            await quick.zrem(self._queue(base), member)
            await quick.zrem(self._leases(base), member)

        await self._connection.call(remove)

    async def _raw(self, work_id: str) -> bytes | None:
        if not self.names.id.fullmatch(work_id):
            return None
        quick, key = self._connection.quick, self._key("")
        data: bytes | None = await self._connection.call(lambda: quick.hget(key, work_id))
        return data

    async def _raw_and_time(self, work_id: str) -> tuple[bytes | None, int]:
        raw, quick = await self._raw(work_id), self._connection.quick
        return raw, _ms(await self._connection.call(quick.time))

    async def _write(self, before: bytes, change: Change[R]) -> R | None:
        """The record as it is now; None if it is not what it was before."""
        return await self._run(CHANGE, before, change, change.items)

    async def _run(
        self, script: str, before: bytes, change: Change[R], items: Sequence[BaseModel]
    ) -> R | None:
        record = change.record.extended(len(items))
        base, tenant = record.base, record.tenant
        keys = [self._key(""), self._queue(base), self._leases(base), self._seconds()]
        reply, confirmed = await self._durability.run(
            script,
            [*keys, self._open(tenant), self._list(record.id)],
            [
                *(record.id, before, record.model_dump_json(), record.path),
                record.queued_at if record.waits else "",
                str(record.lease.until_ms) if record.lease is not None else "",
                *(tenant, str(change.spent_ms), str(change.least_ms), str(int(record.ended))),
                *(item.model_dump_json() for item in items),
            ],
        )
        if reply[0] != b"ok":
            return None
        self._durability.check(confirmed)
        return record

    def _key(self, rest: str) -> str:
        return f"{PREFIX}{self.names.many}{rest}"

    def _of(self, tenant: str) -> str:
        return self._key(f"-of:{tenant}")

    def _open(self, tenant: str) -> str:
        return self._key(f"-open:{tenant}")

    def _queue(self, base: str) -> str:
        return f"{PREFIX}{self.names.one}-queue:{base}"

    def _leases(self, base: str) -> str:
        return f"{PREFIX}{self.names.one}-leases:{base}"

    def _seconds(self) -> str:
        return f"{PREFIX}{self.names.one}-seconds"

    def _list(self, work_id: str) -> str:
        return f"{PREFIX}{self.names.one}-{self.names.items}:{work_id}"

    def _path(self, member: bytes) -> tuple[str, str] | None:
        tenant, _, work_id = _text(member).partition("/")
        return (tenant, work_id) if self.names.id.fullmatch(work_id) else None


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _ms(clock: tuple[int, int]) -> int:
    seconds, micro = clock
    return int(seconds) * 1000 + int(micro) // 1000
