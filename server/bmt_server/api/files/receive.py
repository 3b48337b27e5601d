"""A form's file on its way to the disk, for the route of files and for pages of the console."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import BinaryIO

from fastapi import Request

from bmt_server.api.files.form import OVERHEAD_BYTES, FileForm, TooLarge, too_large
from bmt_server.api.files.scratch import disk
from bmt_server.api.routes.dependencies import receiving

_PIECE_BYTES = 1 << 20


async def receive_form(
    request: Request,
    file: BinaryIO,
    max_bytes: int,
    *counts: Callable[[int], None],
    refuse: TooLarge = too_large,
) -> FileForm:
    """The form, whose file is on the disk. counts: called with the size of each piece.

    refuse: the error for a file of more than `max_bytes`. Raises ApiError.
    """
    form = FileForm(request.headers.get("content-type", ""), file, max_bytes, refuse)
    total, waiting = 0, bytearray()
    with receiving():
        async for chunk in request.stream():
            total += len(chunk)
            if total > max_bytes + OVERHEAD_BYTES:
                raise refuse(total - OVERHEAD_BYTES, max_bytes)
            for count in counts:
                count(len(chunk))
            waiting += chunk
            if len(waiting) >= _PIECE_BYTES:
                await asyncio.to_thread(_write, form, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(_write, form, bytes(waiting))
        await asyncio.to_thread(_flush, file)
    form.finish()
    return form


def _write(form: FileForm, data: bytes) -> None:
    with disk():
        form.write(data)


def _flush(file: BinaryIO) -> None:
    # Here, because the next seek would do it where no caller expects an error of the disk.
    with disk():
        file.flush()
