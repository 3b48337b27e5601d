"""Routes of files, as OpenAI's clients call them: upload, list, show, content, delete."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any, BinaryIO, Literal

from fastapi import Query, Request
from fastapi.responses import StreamingResponse

from bmt_server.api.access_log import audit
from bmt_server.api.app_state import AppState
from bmt_server.api.files.form import OVERHEAD_BYTES, FileForm, too_large
from bmt_server.api.files.receive import receive_form
from bmt_server.api.files.rows import check
from bmt_server.api.files.scratch import scratch_file
from bmt_server.api.response.pages import page_of
from bmt_server.api.routes.dependencies import app_state, principal_of, tenant_of
from bmt_server.errors import BadRequest, NotFound
from bmt_server.registry.files.record import (
    BATCH,
    MAX_NAME_CHARACTERS,
    PURPOSE,
    RESULTS,
    FileRecord,
    Purpose,
    new_file_id,
)
from bmt_server.registry.files.store import FileStore

MAX_PAGE = 10_000
_PIECE_BYTES = 1 << 20


async def upload(request: Request) -> dict[str, Any]:
    """Keep a file: a form with `file` (JSONL) and `purpose`, `fine-tune` or `batch`.

    Each row for fine-tuning is checked before the file is kept: `messages` that end with the
    assistant's (supervised), `input`, `preferred_output` and `non_preferred_output` (dpo), or
    `messages` that end with the user's and further columns for a grader (reinforcement). A row that
    is not valid is 400 with its number and field. Lines of a batch are checked when it is created.
    """
    state, store = app_state(request), file_store(request)
    _check_length(request, state)
    with (
        state.file_uploads.receive(principal_of(request).key_id) as received,
        state.cache.uploads() as added,
        scratch_file(state.settings.cache_dir) as file,
    ):
        form = await receive_form(request, file, state.settings.max_file_bytes, received, added)
        purpose = form.fields.pop("purpose", None)
        if form.fields:
            name = sorted(form.fields)[0]
            raise BadRequest(
                f"{name[:64]} is not taken: files stay until they are deleted", param=name[:64]
            )
        if purpose not in (PURPOSE, BATCH):
            raise BadRequest(
                f"purpose is {purpose!r}; {PURPOSE!r} and {BATCH!r} are kept here", param="purpose"
            )
        async with state.file_uploads.work:
            record = await asyncio.to_thread(_checked, tenant_of(request), purpose, form, file)
            record = await store.add(record, file)
    audit(request, "file_create", record.id, bytes=record.bytes, sha256=record.sha256)
    return record.shown()


async def list_files(
    request: Request,
    purpose: str | None = Query(None, max_length=64),
    limit: int = Query(MAX_PAGE, ge=1, le=MAX_PAGE),
    order: Literal["asc", "desc"] = Query("desc"),
    after: str | None = Query(None, max_length=64),
) -> dict[str, Any]:
    """Files of the key's tenant, the newest first. after: the last id of the page before."""
    found = file_store(request).of_tenant(tenant_of(request), after, oldest_first=order == "asc")
    wanted = (record async for record in found if purpose in (None, record.purpose))
    return await page_of(wanted, limit)


async def show(request: Request, file_id: str) -> dict[str, Any]:
    """One file, without its content."""
    return (await file_store(request).get(tenant_of(request), file_id)).shown()


async def content(request: Request, file_id: str) -> StreamingResponse:
    """A file's bytes, as they were uploaded. A damaged file is 503, or a body that is cut off."""
    store = file_store(request)
    record = await store.get(tenant_of(request), file_id)
    return await stream(store, record)


async def delete(request: Request, file_id: str) -> dict[str, Any]:
    """Delete a file. A job that has not read it yet fails."""
    await file_store(request).delete(tenant_of(request), file_id)
    audit(request, "file_delete", file_id)
    return {"id": file_id, "object": "file", "deleted": True}


async def stream(store: FileStore, record: FileRecord) -> StreamingResponse:
    """A response of a file's bytes. Raises ApiError if the first ones cannot be read."""
    pieces = store.read(record)
    first = await anext(pieces)

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    ending = "csv" if record.purpose == RESULTS else "jsonl"
    headers = {
        "Content-Length": str(record.bytes),
        # Whatever a client uploaded is nothing that a browser runs.
        "Content-Disposition": f'attachment; filename="{record.id}.{ending}"',
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)


def file_store(request: Request) -> FileStore:
    """The server's files. Raises NotFound on a server without any."""
    store = app_state(request).files
    if store is None:
        raise NotFound(
            "this server keeps no files; its operator sets a folder or a bucket by --files",
            code="files_off",
        )
    return store


def _check_length(request: Request, state: AppState) -> None:
    """Raise PayloadTooLarge before anything is read of a body that says it is too long."""
    length = request.headers.get("content-length", "")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequest("send the form without Content-Encoding", code="bad_form")
    most, size = state.settings.max_file_bytes, 0
    if length.isascii() and length.isdigit():
        size = int(length)
    if size > most + OVERHEAD_BYTES:
        raise too_large(size - OVERHEAD_BYTES, most)


def _checked(tenant: str, purpose: Purpose, form: FileForm, file: BinaryIO) -> FileRecord:
    """The record of a file whose rows are valid. Raises BadRequest."""
    name = form.filename or ""
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise BadRequest(
            f"the file's name has {len(name)} characters; 1 to {MAX_NAME_CHARACTERS}, all "
            "printable, do",
            param="file",
        )
    file.seek(0)
    found = check(file) if purpose == PURPOSE else None
    file.seek(0)
    digest, ends, last = hashlib.sha256(), 0, b"\n"
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        ends += piece.count(b"\n")
        last = piece[-1:]
    file.seek(0)
    return FileRecord(
        id=new_file_id(),
        tenant=tenant,
        filename=name,
        bytes=form.size,
        created_at=int(time.time()),
        sha256=digest.hexdigest(),
        rows=found.rows if found is not None else ends + (last != b"\n"),
        form=found.form if found is not None else None,
        purpose=purpose,
    )
