"""Uploads within the quota of their tenant."""

from __future__ import annotations

from typing import Any

from bmt_server.api.app_state import AppState
from bmt_server.errors import Conflict, Unavailable
from bmt_server.registry.schemas import Version
from bmt_server.registry.usage.quota import BEHIND, OVER, Quota

_ATTEMPTS = 4


async def publish_within_quota(
    state: AppState, version: Version, data: bytes, **conditions: Any
) -> str:
    """Publish a version. Returns the outcome of `Registry.publish`.

    conditions: its other arguments. Raises PayloadTooLarge (`quota_exceeded`) and the errors of
    `Registry.publish`.
    """
    quota, stored = _quota(state, version), ""
    if quota is not None and _adds(state, version) and quota.exceeded():
        await state.replica.sync()
        quota = _quota(state, version)
        if quota is not None and _adds(state, version) and quota.exceeded():
            # Before the bytes are stored: a tenant beyond its quota fills nothing.
            raise quota.refusal(quota.versions, quota.bytes)
    for _ in range(_ATTEMPTS):
        try:
            outcome, stored = await state.registry.publish(version, data, quota=quota, **conditions)
        except Conflict:
            state.housekeeper.removed([version.file_digest])
            raise
        if outcome not in (OVER, BEHIND) or quota is None:
            return outcome
        # The script counts what this process may know already; with all changes known it decides.
        await state.replica.sync()
        quota = _quota(state, version)
    # Redis has the bytes, and a tenant would store any number of them by refused uploads.
    state.housekeeper.removed([version.file_digest])
    if outcome == BEHIND or quota is None:
        raise Unavailable(
            "the tenant publishes faster than its quota can be counted; try again shortly",
            code="quota_busy",
        )
    versions, size = stored.split()
    raise quota.refusal(int(versions), int(size))


def _quota(state: AppState, version: Version) -> Quota | None:
    limits = state.limit_store.of("tenant", version.tenant)
    most_versions, most_bytes = limits.versions or 0, limits.storage_bytes or 0
    if not most_versions and not most_bytes:
        return None
    versions, size, generation = state.replica.stored(version.tenant)
    return Quota(
        tenant=version.tenant,
        generation=generation,
        versions=versions,
        bytes=size,
        most_versions=most_versions,
        most_bytes=most_bytes,
        size=version.bytes,
        has_file=state.replica.catalog.has_file(version.tenant, version.file_digest),
    )


def _adds(state: AppState, version: Version) -> bool:
    """True if the version is none of its name, by what this process knows."""
    known = state.replica.get(version.tenant, version.name)
    return known is None or version.digest not in known.versions
