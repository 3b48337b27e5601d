"""Routes of fine-tuning jobs, as OpenAI's clients call them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import Query, Request

from bmt_server.api.access_log import audit
from bmt_server.api.jobs.create import MAX_BODY_BYTES, NewJob, job_of
from bmt_server.api.jobs.masks import withdraw
from bmt_server.api.response.pages import page
from bmt_server.api.routes.dependencies import app_state, read_json, tenant_of
from bmt_server.errors import BadRequest, NotFound
from bmt_server.registry.jobs.record import Job
from bmt_server.registry.jobs.store import JobStore
from bmt_server.registry.jobs.transitions import asked, event
from bmt_server.registry.leased.fairness import least_ms
from bmt_server.registry.schemas import DIGEST_SHOWN

MAX_PAGE = 100


async def create(request: Request) -> dict[str, Any]:
    """Start a job: `model` is the base, `training_file` the id of a file, `method` the training.

    Methods are `supervised`, `dpo`, and `reinforcement` with a grader; hyperparameters `n_epochs`,
    `batch_size`, `learning_rate_multiplier`, `beta` of `dpo`, and `compute_multiplier`,
    `eval_interval` of `reinforcement`. A worker (`bmt-train worker`) runs it, and the mask is a
    model of this server then: `fine_tuned_model`.
    """
    state, store = app_state(request), job_store(request)
    body = await read_json(request, NewJob, MAX_BODY_BYTES)
    now_ms = time.time_ns() // 1_000_000
    job = await job_of(request, state, body, now_ms)
    least = least_ms(await store.waiting(job.base), job.tenant)
    job = await store.create(job, event(now_ms, f"Created fine-tuning job: {job.id}"), least)
    audit(request, "job_create", job.id, method=job.method.type, file=job.training_file)
    return job.shown()


async def list_jobs(
    request: Request,
    after: str | None = Query(None, max_length=64),
    limit: int = Query(20, ge=1, le=MAX_PAGE),
) -> dict[str, Any]:
    """Jobs of the key's tenant, the newest first. after: the last id of the page before.

    `metadata[key]=value` leaves those with that value, and `metadata=null` those without any.
    """
    found: list[dict[str, Any]] = []
    async for job in job_store(request).of_tenant(tenant_of(request), after):
        if not _is_wanted(request, job):
            continue
        if len(found) == limit:
            return {"object": "list", "data": found, "has_more": True}
        found.append(job.shown())
    return {"object": "list", "data": found, "has_more": False}


def _is_wanted(request: Request, job: Job) -> bool:
    """True if a job has the metadata that the query asks for."""
    for name, value in request.query_params.multi_items():
        if (name, value) == ("metadata", "null") and job.metadata:
            return False
        key = re.fullmatch(r"metadata\[(.*)\]", name, re.DOTALL)
        if key is not None and (job.metadata or {}).get(key[1]) != value:
            return False
    return True


async def show(request: Request, job_id: str) -> dict[str, Any]:
    """One job."""
    return (await job_store(request).get(tenant_of(request), job_id)).shown()


async def cancel(request: Request, job_id: str) -> dict[str, Any]:
    """Cancel a job that has not ended; 412 `job_state` for one that has."""
    return await _ask(request, job_id, "cancel")


async def pause(request: Request, job_id: str) -> dict[str, Any]:
    """Pause a job; what it has trained stays on its worker."""
    return await _ask(request, job_id, "pause")


async def resume(request: Request, job_id: str) -> dict[str, Any]:
    """Put a paused job back into the queue. It goes on as if it had not been paused."""
    return await _ask(request, job_id, "resume")


async def events(
    request: Request,
    job_id: str,
    after: str | None = Query(None, max_length=64),
    limit: int = Query(20, ge=1, le=MAX_PAGE),
) -> dict[str, Any]:
    """Events of a job, the newest first, with the metrics of its steps."""
    store = job_store(request)
    job = await store.get(tenant_of(request), job_id)
    before = None
    if after is not None:
        head, _, number = after.rpartition("-")
        if head != f"ftevent-{job.id.removeprefix('ftjob-')}" or not number.isdecimal():
            raise BadRequest(f"after: {after} is no event of {job.id}", param="after")
        before = int(number)
    found = await store.events(job, before, limit)
    data = [one.shown(job.id, number) for number, one in found]
    return {"object": "list", "data": data, "has_more": bool(found) and found[-1][0] > 0}


async def checkpoints(
    request: Request,
    job_id: str,
    after: str | None = Query(None, max_length=64),
    limit: int = Query(10, ge=1, le=MAX_PAGE),
) -> dict[str, Any]:
    """Checkpoints of a job that can be called, the newest first, while it runs and after it.

    Each is an alias of the job's name; of a job that has succeeded, the last one is its model.
    """
    job = await job_store(request).get(tenant_of(request), job_id)
    data = _checkpoints(job)
    if after is not None:
        ids = [one["id"] for one in data]
        if after not in ids:
            raise NotFound(f"no checkpoint {after}", code="checkpoint_not_found", param="after")
        data = data[ids.index(after) + 1 :]
    return page(data[:limit], has_more=len(data) > limit)


def _checkpoints(job: Job) -> list[dict[str, Any]]:
    found = {
        one.step: _checkpoint(job, one.step, one.created_at, f":{one.alias}", one.metrics)
        for one in job.checkpoints
    }
    if job.state == "succeeded" and job.digest is not None:
        metrics = job.metrics or {"step": job.step}
        at = job.finished_at or 0
        found[job.step] = _checkpoint(job, job.step, at, f"@{job.digest[:DIGEST_SHOWN]}", metrics)
    return [found[step] for step in sorted(found, reverse=True)]


def _checkpoint(
    job: Job, step: int, created_at: int, ref: str, metrics: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": f"ftckpt-{job.id.removeprefix('ftjob-')}-{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": created_at,
        "fine_tuned_model_checkpoint": f"{job.fine_tuned_model}{ref}",
        "fine_tuning_job_id": job.id,
        "metrics": metrics,
        "step_number": step,
    }


async def _ask(request: Request, job_id: str, what: str) -> dict[str, Any]:
    store, tenant = job_store(request), tenant_of(request)
    job = await store.get(tenant, job_id)
    # As for a new job: who pauses all and comes back has saved up no worker time.
    least = least_ms(await store.waiting(job.base), tenant) if what == "resume" else 0
    make: Callable[[Job, int], Any] = partial(asked, what, least_ms=least)
    job, changed = await store.change(job_id, make)
    if job.state == "cancelled":
        # A worker whose lease was lost may have published it; asked again, what is left goes too.
        await withdraw(app_state(request), job)
    if changed:
        audit(request, f"job_{what}", job.id)
    return job.shown()


def job_store(request: Request) -> JobStore:
    """The server's jobs. Raises NotFound on a server without files."""
    store = app_state(request).jobs
    if store is None:
        raise NotFound(
            "this server takes no fine-tuning jobs; its operator sets a place for files by --files",
            code="files_off",
        )
    return store
