"""Routes of workers, `bmt-train worker`: lease a job, report, read its file, end it.

A worker's key has the scope `train` and the tenant `default`; it reaches a tenant's file and name
through the lease of that tenant's job alone, by the token that the lease has. A token ends with its
lease, and what comes after it is 412 `lease_lost`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bmt_server.api.access_log import audit
from bmt_server.api.files.routes import file_store, stream
from bmt_server.api.jobs.masks import publish_for, withdraw
from bmt_server.api.jobs.routes import job_store
from bmt_server.api.publishing.publication import decode
from bmt_server.api.routes.dependencies import app_state, read_json
from bmt_server.api.routes.uploads import received
from bmt_server.errors import BadRequest, Conflict, NotFound
from bmt_server.registry.jobs import transitions
from bmt_server.registry.jobs.record import Job, JobError, Level
from bmt_server.registry.jobs.store import Change
from bmt_server.registry.leased.fairness import next_records
from bmt_server.registry.leased.record import new_token

MAX_REPORT_BYTES = 1 << 20
# A lease at least, while a request publishes what its job has made.
_WORK_MS = 60_000
_Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
_LeaseSeconds = Annotated[int, Field(ge=2, le=3600)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class LeaseBody(_Body):
    """Body of `POST /v1/workers/lease`. base: fingerprint of the weights that the worker has."""

    base: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    worker: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    lease_seconds: _LeaseSeconds = 60


class StepMetrics(_Body):
    """Metrics of one step, by OpenAI's names; `full_valid_loss` is of the whole validation file.

    closed_gates: weights that the mask deletes, among them those that are 0 anyway.
    """

    step: int = Field(ge=1, lt=2**31)
    train_loss: float
    learning_rate: float | None = None
    grad_norm: float | None = None
    train_mean_token_accuracy: float | None = None
    train_reward_mean: float | None = None
    train_reward_std: float | None = None
    closed_gates: float | None = None
    full_valid_loss: float | None = None
    valid_reward_mean: float | None = None


class Message(_Body):
    """An event of the worker's."""

    level: Level = "info"
    message: _Text


class Report(_Body):
    """Body of `POST /v1/workers/jobs/{job_id}/report`."""

    token: _Token
    lease_seconds: _LeaseSeconds = 60
    steps: int | None = Field(default=None, ge=1, lt=2**31)
    metrics: list[StepMetrics] = Field(default=[], max_length=1000)
    messages: list[Message] = Field(default=[], max_length=20)


class End(_Body):
    """Body of `POST /v1/workers/jobs/{job_id}/end`.

    outcome: a failure that is the job's; a fault of the worker's host, or a training that ended
    without a word; or a worker that ends. The last two put the job back into the queue, and the
    second counts: after some of them the job fails.
    """

    token: _Token
    outcome: Literal["failed", "crashed", "released"]
    reason: _Text
    code: Annotated[str, StringConstraints(max_length=64)] = "training_failed"


async def lease(request: Request) -> Response:
    """Take the next job of this server's base; 204 if none waits.

    Jobs whose worker is gone come first, then those of the tenant that had the least worker time.
    """
    state, store = app_state(request), job_store(request)
    body = await read_json(request, LeaseBody)
    base = state.settings.fingerprint
    if body.base != base:
        raise BadRequest(
            f"the worker's base is {body.base[:12]}, and this server's {base[:12]} "
            f"({state.engine.base_names[0]}); give the worker the same checkpoint",
            code="base_mismatch",
            param="base",
        )
    async for waiting in next_records(store, base):
        make = partial(
            transitions.leased,
            token=new_token(),
            worker=body.worker,
            lease_ms=body.lease_seconds * 1000,
        )
        job, changed = await store.change(waiting.id, make)
        if changed and job.state == "failed":
            await withdraw(state, job)
        if changed and job.state == "running":
            audit(request, "job_lease", job.id, worker=body.worker, of=job.tenant)
            return JSONResponse(job.for_worker())
        if not changed and job.state not in ("queued", "running"):
            await store.drop(base, job.tenant, job.id)
    return Response(status_code=204)


async def report(request: Request, job_id: str) -> dict[str, Any]:
    """Prolong a lease, with metrics and messages; 412 `lease_lost` if it has ended."""
    body = await read_json(request, Report, MAX_REPORT_BYTES)
    make = partial(
        transitions.reported,
        token=body.token,
        lease_ms=body.lease_seconds * 1000,
        metrics=[entry.model_dump(exclude_none=True) for entry in body.metrics],
        messages=[(entry.level, entry.message) for entry in body.messages],
        steps=body.steps,
    )
    job, _ = await job_store(request).change(job_id, make)
    return {"id": job.id, "status": job.state, "step": job.step}


async def training_file(
    request: Request,
    job_id: str,
    x_bmt_lease: str = Header(max_length=64),
    of: Literal["training", "validation"] = Query("training"),
) -> StreamingResponse:
    """The training file of a leased job, or its validation file."""
    job = await _held(request, job_id, x_bmt_lease)
    store = file_store(request)
    file_id = job.training_file if of == "training" else job.validation_file
    if file_id is None:
        raise NotFound(f"{job.id} has no {of} file", code="file_not_found", param="of")
    return await stream(store, await store.get(job.tenant, file_id))


async def publish_mask(
    request: Request,
    job_id: str,
    x_bmt_lease: str = Header(max_length=64),
    trained_tokens: int | None = Query(None, ge=0, lt=2**53),
) -> dict[str, Any]:
    """Publish the mask of a leased job as its tenant's, and end the job: it has succeeded.

    Again after a lost answer, the same mask changes nothing.
    """
    state, store = app_state(request), job_store(request)
    async with received(request, state) as data:
        job = await prolonged(request, job_id, x_bmt_lease)
        version, mask = await asyncio.to_thread(
            decode, state, job.tenant, job.fine_tuned_model, data, None
        )
        await publish_for(request, job, version, mask, data)
    make = partial(
        transitions.finished,
        token=x_bmt_lease,
        digest=version.digest,
        trained_tokens=trained_tokens,
    )
    try:
        job, _ = await store.change(job_id, make)
    except Conflict:
        # Not that of a job which another worker has or gets: its mask may be there already.
        now = await store.find(job_id)
        if now is not None and now.state in ("cancelled", "failed", "paused"):
            await withdraw(state, now)
        raise
    audit(request, "job_end", job.id, state=job.state, model=job.fine_tuned_model)
    return {"id": job.id, "status": job.state, "model": job.fine_tuned_model}


async def end(request: Request, job_id: str) -> dict[str, Any]:
    """End a leased job that cannot be trained, or give it back to the queue."""
    body = await read_json(request, End, 16 << 10)
    failed = body.outcome == "failed"

    def make(job: Job, now_ms: int) -> Change:
        if failed:
            error = JobError(code=body.code, message=body.reason)
            return transitions.failed(job, now_ms, token=body.token, error=error)
        crashed = body.outcome == "crashed"
        return transitions.released(
            job, now_ms, token=body.token, reason=body.reason, crashed=crashed
        )

    job, _ = await job_store(request).change(job_id, make)
    if job.state == "failed":
        await withdraw(app_state(request), job)
    audit(request, "job_end" if failed else "job_release", job.id, state=job.state)
    return {"id": job.id, "status": job.state}


async def prolonged(
    request: Request, job_id: str, token: str, messages: Sequence[tuple[Level, str]] = ()
) -> Job:
    """The job of a lease that no other worker can take while a request is at work.

    messages: events of the tenant's. Raises Conflict, NotFound.
    """
    make = partial(transitions.reported, token=token, lease_ms=_WORK_MS, messages=messages)
    job, _ = await job_store(request).change(job_id, make)
    return job


async def _held(request: Request, job_id: str, token: str) -> Job:
    """The job of a lease. Raises Conflict, NotFound."""
    job = await job_store(request).find(job_id)
    if job is None:
        raise NotFound(f"no job {job_id[:64]}", code="job_not_found")
    transitions.held(job, token)
    return job
