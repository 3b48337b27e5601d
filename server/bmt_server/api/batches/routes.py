"""Routes of batches, as OpenAI's clients call them."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bmt_server.api.access_log import audit
from bmt_server.api.app_state import AppState
from bmt_server.api.files.routes import file_store
from bmt_server.api.own_requests import key_hash_of
from bmt_server.api.permissions import find_route
from bmt_server.api.response.pages import page_of
from bmt_server.api.routes.dependencies import app_state, principal_of, read_json, tenant_of
from bmt_server.errors import BadRequest, NotFound
from bmt_server.registry.batches.record import Batch, new_batch_id
from bmt_server.registry.batches.store import BatchStore
from bmt_server.registry.batches.transitions import cancelled
from bmt_server.registry.files.record import BATCH
from bmt_server.registry.leased.fairness import least_ms

MAX_PAGE = 100
MAX_BODY_BYTES = 64 << 10
#: Longest completion window.
MAX_WINDOW_S = 7 * 86_400
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]


class NewBatch(BaseModel):
    """Body of `POST /v1/batches`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: Annotated[str, StringConstraints(max_length=64)]
    endpoint: Annotated[str, StringConstraints(max_length=64)]
    completion_window: Annotated[str, StringConstraints(max_length=16)]
    metadata: dict[_Key, _Value] | None = Field(default=None, max_length=16)
    output_expires_after: Any = None


async def create(request: Request) -> dict[str, Any]:
    """Start a batch: `input_file_id` of purpose `batch`, `endpoint`, `completion_window` (`24h`).

    The lines are checked first (`validating`), and run below live requests, in the name of this
    key. Answers are in two files of purpose `batch_output`: `output_file_id`, `error_file_id`.
    """
    state, store = app_state(request), batch_store(request)
    body = await read_json(request, NewBatch, MAX_BODY_BYTES)
    batch = await _batch_of(request, state, body)
    least = least_ms(await store.waiting(batch.base), batch.tenant)
    batch = await store.create(batch, least)
    if state.batch_runner is not None:
        state.batch_runner.wake()
    audit(request, "batch_create", batch.id, endpoint=batch.endpoint, file=batch.input_file)
    return batch.shown()


async def list_batches(
    request: Request,
    after: str | None = Query(None, max_length=64),
    limit: int = Query(20, ge=1, le=MAX_PAGE),
) -> dict[str, Any]:
    """Batches of the key's tenant, the newest first. after: the last id of the page before."""
    return await page_of(batch_store(request).of_tenant(tenant_of(request), after), limit)


async def show(request: Request, batch_id: str) -> dict[str, Any]:
    """One batch."""
    return (await batch_store(request).get(tenant_of(request), batch_id)).shown()


async def cancel(request: Request, batch_id: str) -> dict[str, Any]:
    """Cancel a batch; the answers that there are stay. 412 `batch_state` for one that has ended."""
    store = batch_store(request)
    batch = await store.get(tenant_of(request), batch_id)
    batch, changed = await store.change(batch.id, cancelled)
    if changed:
        audit(request, "batch_cancel", batch.id)
        if (runner := app_state(request).batch_runner) is not None:
            runner.wake()
    return batch.shown()


async def _batch_of(request: Request, state: AppState, body: NewBatch) -> Batch:
    """The batch of a body. Raises ApiError."""
    if body.output_expires_after is not None:
        raise BadRequest(
            "output_expires_after: files stay until they are deleted", param="output_expires_after"
        )
    _check_endpoint(request, body.endpoint)
    window_s = _window_s(body.completion_window)
    principal = principal_of(request)
    try:
        record = await file_store(request).get(principal.tenant, body.input_file_id)
    except NotFound:
        raise BadRequest(
            f"input_file_id: no file {body.input_file_id}",
            code="file_not_found",
            param="input_file_id",
        ) from None
    if record.purpose != BATCH:
        raise BadRequest(
            f"input_file_id: {record.id} has the purpose {record.purpose!r}; upload it with "
            f"{BATCH!r}",
            code="invalid_file",
            param="input_file_id",
        )
    now_ms = time.time_ns() // 1_000_000
    now_s = now_ms // 1000
    return Batch(
        id=new_batch_id(),
        tenant=principal.tenant,
        key_id=principal.key_id,
        key_hash="" if state.settings.no_auth else key_hash_of(request),
        created_at=now_s,
        created_ms=now_ms,
        base=state.settings.fingerprint,
        endpoint=body.endpoint,
        input_file=record.id,
        completion_window=body.completion_window,
        expires_at=now_s + window_s,
        metadata=body.metadata,
    )


def _check_endpoint(request: Request, endpoint: str) -> None:
    """Raise BadRequest for a path that is no route of this server by which the engine answers."""
    route = find_route("POST", endpoint)
    paths = {getattr(one, "path", "") for one in request.app.routes}
    if route is None or not route.runs_engine or endpoint not in paths:
        known = [p for p in sorted(paths) if (r := find_route("POST", p)) and r.runs_engine]
        raise BadRequest(
            f"endpoint is {endpoint!r}; this server's batches are for {', '.join(known)}",
            param="endpoint",
        )


def _window_s(text: str) -> int:
    """Seconds of a completion window. Raises BadRequest."""
    parts = _WINDOW.fullmatch(text)
    window_s = int(parts[1]) * _SECONDS[parts[2]] if parts is not None else 0
    if not 0 < window_s <= MAX_WINDOW_S:
        raise BadRequest(
            f"completion_window is {text!r}; a number with s, m, h or d, as in 24h, of "
            f"{MAX_WINDOW_S // 86_400}d at most",
            param="completion_window",
        )
    return window_s


def batch_store(request: Request) -> BatchStore:
    """The server's batches. Raises NotFound on a server without files."""
    store = app_state(request).batches
    if store is None:
        raise NotFound(
            "this server takes no batches; its operator sets a place for files by --files",
            code="files_off",
        )
    return store
