"""Fine-tuning jobs in the registry: work with events (`registry/leased/store.py`)."""

from __future__ import annotations

import logging

from bmt_server.errors import BadRequest, NotFound, RegistryFull
from bmt_server.registry.jobs.record import JOB_ID, Job, JobEvent, read_event, read_job
from bmt_server.registry.leased import store as work
from bmt_server.registry.leased.scripts import CHANGE, CHANGE_THAT_GROWS

logger = logging.getLogger("vllm.bmt_server")

#: Jobs of one tenant that have not ended, paused ones among them, and of all.
MAX_OPEN, MAX_KEPT = 100, 1000
#: A job's next record, and its events.
Change = work.Change[Job]


class JobStore(work.WorkStore[Job]):
    """Jobs of all tenants. Methods raise RegistryDown."""

    names = work.Names("job", "jobs", "events", JOB_ID)

    def _read(self, data: bytes | None) -> Job | None:
        return read_job(data)

    def _not_found(self, work_id: str) -> NotFound:
        return not_found(work_id)

    async def create(self, job: Job, event: JobEvent, least_ms: int) -> Job:
        """Keep a new job. Raises BadRequest if the tenant has too many that have not ended."""
        refusal = BadRequest(
            f"tenant {job.tenant!r} has {MAX_OPEN} jobs that have not ended, which is the "
            "limit; wait for one, or cancel some",
            code="too_many_jobs",
        )
        return await self._create(
            job,
            [event],
            least_ms=least_ms,
            most_open=MAX_OPEN,
            most_kept=MAX_KEPT,
            too_many=refusal,
        )

    async def events(self, job: Job, before: int | None, limit: int) -> list[tuple[int, JobEvent]]:
        """Events with their numbers, the newest first; before: a number, for the next page."""
        end = job.events if before is None else min(before, job.events)
        start = max(0, end - limit)
        stored = await self.listed(job.id, start, end)
        read = [(start + at, read_event(data)) for at, data in enumerate(stored)]
        return [(at, event) for at, event in reversed(read) if event is not None]

    async def _write(self, before: bytes, change: Change) -> Job | None:
        metrics = any(_is_metrics(event) for event in change.items)
        try:
            script = CHANGE_THAT_GROWS if metrics else CHANGE
            return await self._run(script, before, change, change.items)
        except RegistryFull:
            if not metrics:
                raise
            # The job goes on, and so does its lease: the metrics alone have no place.
            logger.warning("%s: metrics are left out, the registry is full", change.record.id)
            said = [event for event in change.items if not _is_metrics(event)]
            return await self._run(CHANGE, before, change, said)


def _is_metrics(event: object) -> bool:
    return isinstance(event, JobEvent) and event.type == "metrics"


def not_found(job_id: str) -> NotFound:
    """The error for a job that does not exist for this key."""
    return NotFound(f"no job {job_id[:64]}", code="job_not_found", param="fine_tuning_job_id")
