"""Masks of jobs in the registry: published under the job's own name alone, and withdrawn.

A version says by its publisher which job made it: under a name that has others, as one that the
tenant uploaded meanwhile, a job publishes nothing and withdraws nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import bmt_core
from fastapi import Request

from bmt_server.api.app_state import AppState
from bmt_server.api.publishing.publication import publish
from bmt_server.api.routes.dependencies import app_state
from bmt_server.errors import ApiError, Conflict, NotFound
from bmt_server.registry.jobs.record import Checkpoint, Job
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.schemas import Publisher, Version

_ATTEMPTS = 3


async def name_of(state: AppState, tenant: str, name: str) -> NameState | None:
    """The registry's entry of a tenant's name; None if it is free."""
    return state.replica.get(tenant, name) or await state.replica.refresh(tenant, name)


async def publish_for(
    request: Request,
    job: Job,
    version: Version,
    mask: bmt_core.Mask,
    data: bytes,
    aliases: Sequence[str] = (),
) -> None:
    """Publish a mask of a job as its tenant's. Raises Conflict (`name_taken`), and ApiError."""
    for attempt in range(_ATTEMPTS):
        stored = await name_of(app_state(request), job.tenant, job.fine_tuned_model)
        if stored is not None and not _is_of(stored, job):
            raise Conflict(
                f"{job.fine_tuned_model} has versions that this job did not make; delete or rename "
                "them, and start the job again",
                code="name_taken",
            )
        try:
            await publish(
                *(request, version, mask, data),
                aliases=aliases,
                resident=False,
                expires=None,
                only_first=stored is None,
                # The tenant's administrators see its own key, and not the operator's and its host.
                publisher=Publisher(key_id=job.key_id, key_name=job.id),
            )
            return
        except Conflict:
            # Taken in between: by the tenant, or by another worker of this very job.
            if stored is not None or attempt == _ATTEMPTS - 1:
                raise


async def withdraw(state: AppState, job: Job) -> None:
    """Remove the masks that a job published before it was cancelled or has failed.

    Its checkpoints stay, and the newest of them is the latest version then.
    """
    place = (job.tenant, job.fine_tuned_model)
    stored = await name_of(state, *place)
    if stored is None or not _is_of(stored, job):
        return
    kept = [one.digest for one in job.checkpoints]
    gone = [one for digest, one in stored.versions.items() if digest not in kept]
    try:
        if not kept:
            await state.registry.delete_name(*place, if_match=stored.latest)
        elif gone:
            if stored.latest not in kept:
                await state.registry.set_alias(
                    *place, bmt_core.LATEST, kept[-1], if_match=stored.latest
                )
            await state.registry.prune(*place, [one.digest for one in gone])
    except (Conflict, NotFound):
        return
    state.housekeeper.removed([one.file_digest for one in gone])


async def remove_checkpoint(state: AppState, job: Job, checkpoint: Checkpoint) -> None:
    """Remove a checkpoint's alias, and its version unless that is another's or the latest."""
    place = (job.tenant, job.fine_tuned_model)
    with contextlib.suppress(ApiError):
        await state.registry.set_alias(*place, checkpoint.alias, None)
    with contextlib.suppress(ApiError):
        await state.registry.delete_version(*place, checkpoint.digest)
        state.housekeeper.removed([checkpoint.file_digest])


def _is_of(stored: NameState, job: Job) -> bool:
    publishers = (version.published_by for version in stored.versions.values())
    return all(one is not None and one.key_name == job.id for one in publishers)
