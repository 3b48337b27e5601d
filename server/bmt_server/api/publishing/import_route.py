"""`POST /v1/masks/{name}/import`: publish a mask that the server itself reads from a source.

A route of its own and no PUT with another content type: a PUT is repeatable, and proxies repeat it,
while what a source holds may differ between two times; and a gateway can close imports by path.
"""

from __future__ import annotations

from fastapi import Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from bmt_server.api.publishing.importing import import_mask
from bmt_server.api.publishing.publication import check_targets, read_expiry
from bmt_server.api.routes.dependencies import read_json, valid_digest
from bmt_server.sources.locations import MAX_CHARACTERS, parse_location

MAX_BODY_BYTES = 2 * MAX_CHARACTERS


class ImportSource(BaseModel):
    """Body of the route. source: one of the forms of `sources/locations.py`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: str = Field(max_length=MAX_CHARACTERS)


async def import_from_source(
    request: Request,
    name: str,
    alias: list[str] = Query(default=[]),  # noqa: B008
    digest: str | None = Query(default=None),
    resident: bool = Query(default=False),
    expires: str | None = Query(default=None, max_length=64),
) -> JSONResponse:
    """Publish a version from `{"source": "hf://…"}`: 201 if it is new, else 200.

    The parameters and conditions are those of an upload. digest: SHA-256 that the file must have.
    """
    aliases = check_targets(request, name, alias)
    until = read_expiry(name, expires)
    stated = valid_digest(digest.removeprefix("sha256:")) if digest is not None else None
    body = await read_json(request, ImportSource, MAX_BODY_BYTES)
    return await import_mask(
        request,
        name,
        parse_location(body.source),
        aliases=aliases,
        stated=stated,
        resident=resident,
        expires=until,
    )
