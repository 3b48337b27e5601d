"""Download of stored mask files by digest."""

from __future__ import annotations

import asyncio

import bmt_core
from fastapi import Request
from fastapi.responses import Response

from bmt_server.api.routes.dependencies import OCTETS, app_state, tenant_of, valid_digest
from bmt_server.errors import NotFound, Unavailable


async def blob(request: Request, digest: str) -> Response:
    """A file's bytes, or with HEAD its size, for tenants that have a version of it."""
    state = app_state(request)
    valid_digest(digest)
    if not state.replica.catalog.has_file(tenant_of(request), digest):
        raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
    headers = {"ETag": f'"{digest}"', "X-Content-Type-Options": "nosniff"}
    size = await state.registry.blob_size(digest)
    if request.method == "HEAD":
        if not size:
            raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
        return Response(headers={**headers, "Content-Length": str(size)}, media_type=OCTETS)
    data = bytes(await state.registry.blob(digest, size))
    if await asyncio.to_thread(bmt_core.file_digest, data) != digest:
        raise Unavailable(
            f"blob {digest[:12]}… in the registry is damaged; upload the mask again",
            code="blob_damaged",
        )
    return Response(data, headers=headers, media_type=OCTETS)
