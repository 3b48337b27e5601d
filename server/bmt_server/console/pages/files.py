"""Files for fine-tuning: upload, list, delete."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import BinaryIO

from fastapi import Request
from fastapi.responses import Response

from bmt_server.api.files.form import FileForm
from bmt_server.console.calls import Call
from bmt_server.console.forms import pieces_of, read_fields, read_file
from bmt_server.console.page import page, redirect, render
from bmt_server.console.session import Visitor, console_state
from bmt_server.errors import ApiError, BadRequest

_PAGE = 100


@page
async def show_all(request: Request, visitor: Visitor) -> Response:
    """Files of the key's tenant, the newest first."""
    return await _list(request, visitor)


@page
async def upload(request: Request, visitor: Visitor) -> Response:
    """Check a file's rows and keep it."""
    state = console_state(request)
    most = state.settings.max_file_bytes
    try:
        async with read_file(request, visitor, state.file_uploads, most) as (form, file):
            await visitor.api.send(_upload(form, file))
    except ApiError as error:
        return await _list(request, visitor, error)
    return redirect(request, "/files", "file")


@page
async def change(request: Request, visitor: Visitor) -> Response:
    """Delete a file."""
    file_id, what = request.path_params["file"], request.path_params["what"]
    try:
        await read_fields(request, visitor.csrf)
        if what != "delete":
            raise BadRequest(f"there is no change {what!r} of a file")
        await visitor.api.send(Call.of("DELETE", f"/v1/files/{file_id}"))
    except ApiError as error:
        return await _list(request, visitor, error)
    return redirect(request, "/files", "deleted")


async def _list(request: Request, visitor: Visitor, error: ApiError | None = None) -> Response:
    after = request.query_params.get("after", "")[:64] or None
    found = await visitor.api.get("/v1/files", limit=_PAGE, after=after)
    return render(
        request,
        visitor,
        "files.html",
        error=error,
        files=found["data"],
        after=found["last_id"] if found["has_more"] else None,
        max_bytes=console_state(request).settings.max_file_bytes,
    )


def _upload(form: FileForm, file: BinaryIO) -> Call:
    """The form of the API's own route, which reads a file's rows as it does for any client."""
    boundary = f"bmt-{secrets.token_hex(16)}"
    name = (form.filename or "").replace("\\", "\\\\").replace('"', '\\"')
    name = name.replace("\r", " ").replace("\n", " ")
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield head
        async for piece in pieces_of(file):
            yield piece
        yield tail

    return Call.of(
        "POST",
        "/v1/files",
        pieces=pieces(),
        size=len(head) + form.size + len(tail),
        content_type=f"multipart/form-data; boundary={boundary}",
    )
