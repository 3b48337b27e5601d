"""Routes of workers for what a training leaves besides its mask: checkpoints, and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import time
from functools import partial
from typing import Any

from fastapi import Header, Path, Query, Request
from pydantic import ValidationError

from bmt_server.api.access_log import audit
from bmt_server.api.files.routes import file_store
from bmt_server.api.jobs.masks import publish_for, remove_checkpoint, withdraw
from bmt_server.api.jobs.routes import job_store
from bmt_server.api.jobs.worker_routes import StepMetrics, prolonged
from bmt_server.api.publishing.publication import decode
from bmt_server.api.routes.dependencies import app_state
from bmt_server.api.routes.uploads import received
from bmt_server.errors import ApiError, BadRequest, PayloadTooLarge
from bmt_server.registry.files.record import RESULTS, FileRecord, new_file_id
from bmt_server.registry.jobs import transitions
from bmt_server.registry.jobs.record import Checkpoint, Job

MAX_RESULT_BYTES = 16 << 20
_FILENAME = "step_metrics.csv"


async def publish_checkpoint(
    request: Request,
    job_id: str,
    step: int = Path(ge=1, lt=2**31),
    metrics: str = Query(max_length=2048),
    x_bmt_lease: str = Header(max_length=64),
) -> dict[str, Any]:
    """Publish the mask of a step of a leased job as its tenant's, `<name>:ckpt-step-<step>`.

    metrics: of the step, as JSON. The newest checkpoints stay, and older ones are removed. A tenant
    over its quota keeps none: `kept` is false then.
    """
    state, store = app_state(request), job_store(request)
    try:
        found = StepMetrics.model_validate_json(metrics)
    except ValidationError as error:
        raise BadRequest(f"metrics: {error.errors()[0]['msg']}", param="metrics") from None
    async with received(request, state) as data:
        job = await prolonged(request, job_id, x_bmt_lease)
        if job.checkpoints and step <= job.checkpoints[-1].step:
            return {"id": job.id, "kept": True}
        version, mask = await asyncio.to_thread(
            decode, state, job.tenant, job.fine_tuned_model, data, None
        )
        checkpoint = Checkpoint(
            step=step,
            created_at=int(time.time()),
            digest=version.digest,
            file_digest=version.file_digest,
            metrics=found.model_dump(exclude_none=True),
        )
        try:
            await publish_for(request, job, version, mask, data, (checkpoint.alias,))
        except PayloadTooLarge as error:
            said = f"The checkpoint of step {step} is not kept: {error}"
            await _say(request, job, x_bmt_lease, said)
            return {"id": job.id, "kept": False}
    before = job.checkpoints
    try:
        job, _ = await store.change(
            job_id, partial(transitions.checkpointed, token=x_bmt_lease, checkpoint=checkpoint)
        )
    except ApiError:
        # Of a job that was paused, or is another worker's, it is published again.
        now = await store.find(job.id)
        if now is not None and now.ended:
            with contextlib.suppress(ApiError):
                place = (job.tenant, job.fine_tuned_model)
                await state.registry.set_alias(*place, checkpoint.alias, None)
            await withdraw(state, now)
        raise
    for old in before:
        if old not in job.checkpoints:
            await remove_checkpoint(state, job, old)
    audit(request, "job_checkpoint", job.id, step=step, digest=version.digest)
    return {"id": job.id, "kept": True}


async def keep_results(
    request: Request, job_id: str, x_bmt_lease: str = Header(max_length=64)
) -> dict[str, Any]:
    """Keep the metrics of a leased job's steps, CSV, as a file of its tenant's.

    Of a tenant whose files are at their quota none is kept, which an event says.
    """
    state, store, files = app_state(request), job_store(request), file_store(request)
    # Bounds of files: those of a small base's masks are less than the metrics of a long training.
    most = min(MAX_RESULT_BYTES, state.settings.max_file_bytes)
    async with received(request, state, state.file_uploads, most) as data:
        job = await prolonged(request, job_id, x_bmt_lease)
        if job.result_file is not None:
            return {"id": job.id, "file": job.result_file}
        record = FileRecord(
            id=new_file_id(),
            tenant=job.tenant,
            filename=_FILENAME,
            bytes=len(data),
            created_at=int(time.time()),
            sha256=hashlib.sha256(data).hexdigest(),
            rows=max(0, data.count(b"\n") - 1),
            form=None,
            purpose=RESULTS,
        )
        try:
            await files.add(record, io.BytesIO(data))
        except PayloadTooLarge as error:
            await _say(request, job, x_bmt_lease, f"The results file is not kept: {error}")
            return {"id": job.id, "file": None}
    make = partial(transitions.resulted, token=x_bmt_lease, file_id=record.id)
    try:
        job, _ = await store.change(job_id, make)
    finally:
        # Read again: of a change whose answer was lost, the record has the file.
        with contextlib.suppress(ApiError):
            now = await store.find(job_id)
            if now is None or now.result_file != record.id:
                await files.delete(job.tenant, record.id)
    return {"id": job.id, "file": job.result_file}


async def _say(request: Request, job: Job, token: str, said: str) -> None:
    """An event for the tenant, a warning."""
    await prolonged(request, job.id, token, [("warn", said[:2000])])
