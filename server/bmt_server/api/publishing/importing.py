"""Import of a mask: the bytes from their source, verified as an upload's are, and published."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import JSONResponse

from bmt_server.api.app_state import AppState
from bmt_server.api.publishing.publication import decode, publish
from bmt_server.api.routes.dependencies import app_state, principal_of, tenant_of
from bmt_server.errors import NotFound
from bmt_server.sources.locations import Location, StoredFile, StoredVersion
from bmt_server.sources.web import Fetched, Received, too_large


async def import_mask(
    request: Request,
    name: str,
    place: Location,
    *,
    aliases: Sequence[str] = (),
    stated: str | None = None,
    resident: bool = False,
    expires: int | None = None,
    only_first: bool = False,
) -> JSONResponse:
    """Publish the file of a place as a version of `name`, under the request's conditions.

    stated: the SHA-256 that the file must have. only_first: only if the name has no version.
    Raises ApiError. The bytes count to the key's share of uploads from their arrival on.
    """
    state, tenant, key_id = app_state(request), tenant_of(request), principal_of(request).key_id
    if not isinstance(place, StoredFile | StoredVersion):
        state.importer.check(place)
    with state.importer.admit(key_id), state.uploads.receive(key_id) as received:
        fetched = await _fetch(state, tenant, place, received)
        async with state.uploads.work:
            version, mask = await asyncio.to_thread(
                decode, state, tenant, name, fetched.data, stated
            )
            return await publish(
                request,
                version,
                mask,
                fetched.data,
                aliases=aliases,
                resident=resident,
                expires=expires,
                only_first=only_first,
                fetched=fetched,
            )


async def _fetch(state: AppState, tenant: str, place: Location, received: Received) -> Fetched:
    if isinstance(place, StoredVersion):
        version = await state.resolver.find(tenant, place.ref)
        place = StoredFile(version.file_digest)
        source = version.model
    elif isinstance(place, StoredFile):
        source = place.shown
    else:
        return await state.importer.read(place, state.max_upload_bytes, received)
    # The same answer for a file that no tenant has and for one that another tenant has.
    unknown = NotFound(f"no file {place.shown[:19]}… here", code="blob_unknown", param="source")
    if not state.replica.catalog.has_file(tenant, place.digest):
        raise unknown
    size = await state.registry.blob_size(place.digest)
    if not size:
        raise unknown
    if size > state.max_upload_bytes:
        raise too_large(place.shown, state.max_upload_bytes)
    received(size)
    data = bytes(await state.registry.blob(place.digest, size))
    return Fetched(data, source)
