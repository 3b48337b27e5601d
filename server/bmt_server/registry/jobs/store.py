"""Fine-tuning jobs in the registry: records, queue, leases, seconds by tenant, events.

    {bmt}:jobs                  hash: job id -> record, JSON
    {bmt}:jobs-of:<tenant>      sorted set of the tenant's job ids, by time of creation
    {bmt}:jobs-open:<tenant>    set of those of them that have not ended
    {bmt}:job-queue:<base>      sorted set of <tenant>/<id> that wait, by time of creation
    {bmt}:job-leases:<base>     sorted set of <tenant>/<id> that run, by end of the lease
    {bmt}:job-seconds           hash: tenant -> worker milliseconds that it had
    {bmt}:job-events:<id>       list of the job's events, JSON

Every change compares the record that it was made from, in one script, and is made again from the
new one if another server was first. Times are of the registry's clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bmt_server.errors import BadRequest, NotFound, RegistryFull, Unavailable
from bmt_server.ipc.blob import PREFIX
from bmt_server.registry.connection import BULK_S, RegistryConnection
from bmt_server.registry.durability import Durability
from bmt_server.registry.jobs.record import JOB_ID, Job, JobEvent, read_event, read_job
from bmt_server.registry.jobs.scripts import CHANGE, CHANGE_WITH_METRICS, CREATE

logger = logging.getLogger("vllm.bmt_server")

_JOBS = PREFIX + "jobs"
_SECONDS = PREFIX + "job-seconds"
_WRITTEN = PREFIX + "written"
_ATTEMPTS = 16
#: Jobs of one tenant that have not ended, paused ones among them, and of all.
MAX_OPEN, MAX_KEPT = 100, 1000
# Records that are read and parsed at once: other requests have their turn in between.
_PIECE = 50


@dataclass(frozen=True)
class Change:
    """A job's next record, its events, and what changes with them.

    spent_ms: worker time to add to its tenant's; least_ms: the least that the tenant has then.
    """

    job: Job
    events: Sequence[JobEvent] = ()
    spent_ms: int = 0
    least_ms: int = 0


@dataclass(frozen=True)
class Waiting:
    """The jobs of one base that wait or run, with the worker time that each tenant had.

    queued: tenant and id, the oldest first; leased: tenant, id and end of the lease.
    """

    now_ms: int
    queued: Sequence[tuple[str, str]] = ()
    leased: Sequence[tuple[str, str, int]] = ()
    spent_ms: dict[str, int] = field(default_factory=dict)


class JobStore:
    """Jobs of all tenants. Methods raise RegistryDown."""

    def __init__(self, connection: RegistryConnection, replicas: int = 0) -> None:
        self._connection = connection
        self._durability = Durability(connection, replicas)

    async def create(self, job: Job, event: JobEvent, least_ms: int) -> Job:
        """Keep a new job. Raises BadRequest if the tenant has too many that have not ended."""
        job = job.model_copy(update={"events": 1})
        keys = [_JOBS, _queue(job.base), _SECONDS, _of(job.tenant), _open(job.tenant), _WRITTEN]
        args = [job.id, job.model_dump_json(), job.path, str(job.created_at), job.tenant]
        args += [str(least_ms), str(time.time()), str(MAX_OPEN), str(MAX_KEPT), _events("")]
        reply, confirmed = await self._durability.run(
            CREATE, keys, [*args, event.model_dump_json()]
        )
        outcome = reply[0].decode()
        if outcome == "too_many":
            raise BadRequest(
                f"tenant {job.tenant!r} has {MAX_OPEN} jobs that have not ended, which is the "
                "limit; wait for one, or cancel some",
                code="too_many_jobs",
            )
        if outcome != "ok":
            raise Unavailable("another job has the same id; try again")
        self._durability.check(confirmed)
        return job

    async def get(self, tenant: str, job_id: str) -> Job:
        """One job of a tenant. Raises NotFound."""
        job = await self.find(job_id)
        if job is None or job.tenant != tenant:
            raise not_found(job_id)
        return job

    async def find(self, job_id: str) -> Job | None:
        """One job of any tenant."""
        return read_job(await self._raw(job_id))

    async def of_tenant(self, tenant: str, after: str | None = None) -> AsyncIterator[Job]:
        """A tenant's jobs, the newest first, from the one after `after`. Raises NotFound."""
        bulk, key, start = self._connection.bulk, _of(tenant), 0
        if after is not None:
            rank = await self._connection.call(lambda: bulk.zrevrank(key, after))
            if rank is None:
                raise not_found(after)
            start = rank + 1
        ids = await self._connection.call(lambda: bulk.zrevrange(key, start, -1), BULK_S)
        for at in range(0, len(ids), _PIECE):
            piece = ids[at : at + _PIECE]
            for data in await self._connection.call(partial(bulk.hmget, _JOBS, piece), BULK_S):
                job = read_job(data)
                if job is not None and job.tenant == tenant:
                    yield job

    async def events(self, job: Job, before: int | None, limit: int) -> list[tuple[int, JobEvent]]:
        """Events with their numbers, the newest first; before: a number, for the next page."""
        end = job.events if before is None else min(before, job.events)
        start = max(0, end - limit)
        if end <= start:
            return []
        bulk, key = self._connection.bulk, _events(job.id)
        stored = await self._connection.call(lambda: bulk.lrange(key, start, end - 1), BULK_S)
        read = [(start + at, read_event(data)) for at, data in enumerate(stored)]
        return [(at, event) for at, event in reversed(read) if event is not None]

    async def change(
        self, job_id: str, make: Callable[[Job, int], Change | None]
    ) -> tuple[Job, bool]:
        """Change a job by `make`, which gets it and the registry's time in ms.

        make: None changes nothing; it may be called several times, and may raise. Returns the job,
        and if it was changed. Raises NotFound.
        """
        for _ in range(_ATTEMPTS):
            raw, now_ms = await self._raw_and_time(job_id)
            job = read_job(raw)
            if job is None or raw is None:
                raise not_found(job_id)
            wanted = make(job, now_ms)
            if wanted is None:
                return job, False
            if (made := await self._write(raw, wanted)) is not None:
                return made, True
        raise Unavailable(f"{job_id} changes too often; try again shortly")

    async def waiting(self, base: str) -> Waiting:
        """The jobs of a base that wait or run."""
        bulk = self._connection.bulk

        async def read() -> list[Any]:
            async with bulk.pipeline(transaction=True) as pipe:
                pipe.time()
                pipe.zrange(_queue(base), 0, -1)
                pipe.zrange(_leases(base), 0, -1, withscores=True)
                pipe.hgetall(_SECONDS)
                replies: list[Any] = await pipe.execute()
                return replies

        clock, queued, leased, spent = await self._connection.call(read, BULK_S)
        return Waiting(
            _ms(clock),
            [path for member in queued if (path := _path(member)) is not None],
            [(*path, int(end)) for member, end in leased if (path := _path(member)) is not None],
            {_text(tenant): int(ms) for tenant, ms in spent.items() if ms.isdigit()},
        )

    async def drop(self, base: str, tenant: str, job_id: str) -> None:
        """Take an entry without a valid record out of queue and leases."""
        quick, member = self._connection.quick, f"{tenant}/{job_id}"

        async def remove() -> None:
            await quick.zrem(_queue(base), member)
            await quick.zrem(_leases(base), member)

        await self._connection.call(remove)

    async def _raw(self, job_id: str) -> bytes | None:
        if not JOB_ID.fullmatch(job_id):
            return None
        quick = self._connection.quick
        data: bytes | None = await self._connection.call(lambda: quick.hget(_JOBS, job_id))
        return data

    async def _raw_and_time(self, job_id: str) -> tuple[bytes | None, int]:
        raw, quick = await self._raw(job_id), self._connection.quick
        return raw, _ms(await self._connection.call(quick.time))

    async def _write(self, before: bytes, change: Change) -> Job | None:
        """The job as it is now; None if it is not what it was before."""
        metrics = any(event.type == "metrics" for event in change.events)
        try:
            script = CHANGE_WITH_METRICS if metrics else CHANGE
            return await self._run(script, before, change, change.events)
        except RegistryFull:
            if not metrics:
                raise
            # The job goes on, and so does its lease: the metrics alone have no place.
            logger.warning("%s: metrics are left out, the registry is full", change.job.id)
            said = [event for event in change.events if event.type != "metrics"]
            return await self._run(CHANGE, before, change, said)

    async def _run(
        self, script: str, before: bytes, change: Change, events: Sequence[JobEvent]
    ) -> Job | None:
        job = change.job.model_copy(update={"events": change.job.events + len(events)})
        keys = [_JOBS, _queue(job.base), _leases(job.base), _SECONDS, _open(job.tenant)]
        reply, confirmed = await self._durability.run(
            script,
            [*keys, _events(job.id)],
            [
                *(job.id, before, job.model_dump_json(), job.path),
                str(job.created_at) if job.state == "queued" else "",
                str(job.lease.until_ms) if job.lease is not None else "",
                *(job.tenant, str(change.spent_ms), str(change.least_ms), str(int(job.ended))),
                *(event.model_dump_json() for event in events),
            ],
        )
        if reply[0] != b"ok":
            return None
        self._durability.check(confirmed)
        return job


def not_found(job_id: str) -> NotFound:
    """The error for a job that does not exist for this key."""
    return NotFound(f"no job {job_id[:64]}", code="job_not_found", param="fine_tuning_job_id")


def _of(tenant: str) -> str:
    return f"{PREFIX}jobs-of:{tenant}"


def _open(tenant: str) -> str:
    return f"{PREFIX}jobs-open:{tenant}"


def _queue(base: str) -> str:
    return f"{PREFIX}job-queue:{base}"


def _leases(base: str) -> str:
    return f"{PREFIX}job-leases:{base}"


def _events(job_id: str) -> str:
    return f"{PREFIX}job-events:{job_id}"


def _path(member: bytes) -> tuple[str, str] | None:
    tenant, _, job_id = _text(member).partition("/")
    return (tenant, job_id) if JOB_ID.fullmatch(job_id) else None


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _ms(clock: tuple[int, int]) -> int:
    seconds, micro = clock
    return int(seconds) * 1000 + int(micro) // 1000
