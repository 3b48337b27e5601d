"""Removal of a name's old versions."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Query, Request

from bmt_server.api.access_log import audit
from bmt_server.api.routes.dependencies import app_state, state_of
from bmt_server.errors import BadRequest
from bmt_server.registry.retention.rules import Rule
from bmt_server.registry.schemas import DIGEST_SHOWN

_LOGGED = 100


async def prune(
    request: Request,
    name: str,
    keep_last: int | None = Query(default=None, ge=1),
    older_than: str | None = Query(default=None, max_length=16),
    dry_run: bool = Query(default=False),
) -> dict[str, Any]:
    """Remove versions beyond the newest `keep_last`, and of those only what is `older_than`.

    The latest version and versions of aliases stay. older_than: a duration as in `30d`. dry_run:
    only say what would be removed. At least one of the two bounds is required.
    """
    if keep_last is None and older_than is None:
        raise BadRequest("give keep_last, older_than, or both", code="prune_unbounded")
    rule = Rule(keep_last, older_than)
    state, stored = app_state(request), await state_of(request, name)
    due = {entry.digest: entry for entry in stored.due(rule, time.time())}
    removed = list(due)
    if not dry_run and due:
        removed = await state.registry.prune(stored.tenant, name, removed)
        audit(request, "prune", name, versions=len(removed), digests=_shortened(removed))
        await state.replica.refresh(stored.tenant, name, removed)
        state.housekeeper.removed(due[digest].file_digest.hex() for digest in removed)
    return {
        "name": name,
        "removed": [{"digest": d, "rev": due[d].rev, "id": due[d].id} for d in removed],
        "dry_run": dry_run,
        "versions": len(stored.versions) - (len(removed) if dry_run else 0),
    }


def _shortened(digests: list[str]) -> str:
    """The first digests of a list, as much of each as names a version."""
    return ",".join(digest[:DIGEST_SHOWN] for digest in digests[:_LOGGED])
