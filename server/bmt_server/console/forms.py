"""Bodies of the console's forms: short fields, or one file with short fields, both bounded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO
from urllib.parse import parse_qsl

from fastapi import Request

from bmt_server.api.admission import UploadLimiter
from bmt_server.api.files.form import OVERHEAD_BYTES, FileForm
from bmt_server.api.files.receive import receive_form
from bmt_server.api.files.scratch import scratch_file
from bmt_server.api.routes.dependencies import receiving
from bmt_server.console.session import Visitor, check_form, check_origin, console_state
from bmt_server.errors import BadRequest, PayloadTooLarge, UnsupportedMedia

# Prompts are the longest fields. The form before a session has a key and a token.
MAX_FORM_BYTES, MAX_SIGN_IN_BYTES = 512 << 10, 4 << 10
MAX_FIELDS = 64
_PIECE_BYTES = 1 << 20
_KIND = "application/x-www-form-urlencoded"


async def read_fields(
    request: Request, token: str, max_bytes: int = MAX_FORM_BYTES
) -> dict[str, str]:
    """Fields of a form, without its token, which is checked; values of one name are one list.

    Raises ApiError.
    """
    check_origin(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _KIND:
        raise UnsupportedMedia(f"content type is {kind[:64]!r}; send the form as {_KIND}")
    data = bytearray()
    with receiving():
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                raise PayloadTooLarge(f"the form has more than {max_bytes} bytes; send less")
    try:
        pairs = parse_qsl(
            data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ValueError:
        raise BadRequest("the form is not valid", code="bad_form") from None
    fields: dict[str, str] = {}
    for name, value in pairs:
        # Browsers send lines of a text with CR LF.
        value = value.replace("\r\n", "\n")
        fields[name] = f"{fields[name]},{value}" if name in fields else value
    check_form(request, token, fields.pop("csrf", ""))
    return fields


@asynccontextmanager
async def read_file(
    request: Request, visitor: Visitor, limiter: UploadLimiter, max_bytes: int
) -> AsyncIterator[tuple[FileForm, BinaryIO]]:
    """A form with one file, which is on the disk for as long as it is used. Raises ApiError."""
    check_origin(request)
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > max_bytes + OVERHEAD_BYTES:
        raise _too_large(int(length) - OVERHEAD_BYTES, max_bytes)
    state = console_state(request)
    with (
        limiter.receive(visitor.principal.key_id) as received,
        state.cache.uploads() as added,
        scratch_file(state.settings.cache_dir) as file,
    ):
        form = await receive_form(request, file, max_bytes, received, added, refuse=_too_large)
        check_form(request, visitor.csrf, form.fields.pop("csrf", ""))
        if not form.size:
            raise BadRequest("choose a file that is not empty", param="file")
        yield form, file


async def pieces_of(file: BinaryIO) -> AsyncIterator[bytes]:
    """The bytes of a file, from its start."""
    file.seek(0)
    while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
        yield piece


def _too_large(size: int, most: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file has {size} bytes or more, and {most} are allowed", param="file"
    )


def read_number(
    fields: dict[str, str], name: str, kind: type[int] | type[float]
) -> int | float | None:
    """A number of a form; None for an empty field. Raises BadRequest for what is none."""
    text = fields.get(name, "").strip()
    if not text:
        return None
    try:
        value = kind(text)
        # JSON has no other numbers, and the API would say so of the whole body.
        if math.isfinite(value):
            return value
    except (ValueError, OverflowError):
        pass
    what = "a whole number" if kind is int else "a number"
    raise BadRequest(f"{name.replace('_', ' ')} is {text[:32]!r}; enter {what}", param=name)
