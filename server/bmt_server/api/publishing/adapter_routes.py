"""vLLM's routes of adapters, for controllers that are made for it: names of masks, and sources.

vLLM 0.32.0 has them in `entrypoints/serve/lora/api_router.py`, without a key and for paths on the
server. Here a load is an import and an unload a removal from the registry, so both concern all
servers. The requests, the texts of success, and the words by which controllers know a name that is
there already ("has already been loaded") or is not ("cannot be found") are vLLM's.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from bmt_server.api.access_log import audit
from bmt_server.api.permissions import ROLLOUT_PREFIX
from bmt_server.api.publishing.import_route import MAX_BODY_BYTES
from bmt_server.api.publishing.importing import import_mask
from bmt_server.api.publishing.publication import check_targets
from bmt_server.api.routes.dependencies import (
    app_state,
    in_turns,
    principal_of,
    read_json,
    tenant_of,
    valid_name,
)
from bmt_server.errors import BadRequest, Conflict, Forbidden, NotFound
from bmt_server.registry.names.name_state import NameState
from bmt_server.sources.locations import MAX_CHARACTERS, parse_location


class LoadAdapter(BaseModel):
    """Body of a load. Further fields are left out, as by vLLM: controllers send `base_model_name`.

    load_inplace: publish a further version of a name that has one.
    """

    model_config = ConfigDict(extra="ignore")

    lora_name: str = Field(max_length=512)
    lora_path: str = Field(max_length=MAX_CHARACTERS)
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadAdapter(BaseModel):
    """Body of an unload. lora_int_id: not used, as by vLLM."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str = Field(max_length=512)
    lora_int_id: int | None = None


async def load_adapter(request: Request) -> PlainTextResponse:
    """Publish the mask of `lora_path`, a source, as `lora_name`."""
    body = await read_json(request, LoadAdapter, MAX_BODY_BYTES)
    if body.is_3d_lora_weight:
        raise BadRequest(
            "is_3d_lora_weight is true; a mask has no such weights, leave it out",
            code="field_refused",
            param="is_3d_lora_weight",
        )
    name = body.lora_name
    check_targets(request, name, ())
    place = parse_location(body.lora_path)
    state, tenant = app_state(request), tenant_of(request)
    loaded = BadRequest(
        f"The lora adapter '{name}' has already been loaded; send 'load_inplace': true to publish "
        "a further version of it",
        code="already_loaded",
        param="lora_name",
    )
    there = not body.load_inplace and state.replica.get(tenant, name) is not None
    # It may have been unloaded through another server a moment ago.
    if there and await state.replica.refresh(tenant, name) is not None:
        raise loaded
    try:
        await import_mask(request, name, place, resident=True, only_first=not body.load_inplace)
    except Conflict as error:
        if body.load_inplace or error.code != Conflict.code:
            raise
        raise loaded from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_adapter(request: Request) -> PlainTextResponse:
    """Delete a name with all its versions, as `DELETE /v1/masks/{name}` does."""
    body = await read_json(request, UnloadAdapter)
    name, state, tenant = valid_name(body.lora_name), app_state(request), tenant_of(request)
    # As the registry has it now: another server may have changed it, or a later build.
    (stored,) = await state.registry.states([(tenant, name)])
    if not stored.versions and not stored.unreadable:
        raise NotFound(f"The lora adapter '{name}' cannot be found.", code="mask_not_found")
    limited = not name.startswith(ROLLOUT_PREFIX) and not principal_of(request).may("admin")
    if limited:
        await _check_reloadable(stored)
    files = stored.versions.files()
    # Not if another version has been published since it was looked at.
    await state.registry.delete_name(tenant, name, stored.latest, only_plain=limited)
    audit(request, "delete", name, digest=stored.latest, versions=len(files))
    await state.replica.refresh(tenant, name)
    state.housekeeper.removed(files)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def _check_reloadable(stored: NameState) -> None:
    """Raise Forbidden unless all versions are from outside: a load brings them back from there.

    A key of scope `upload` removes nothing that was uploaded, copied from another name, whose
    versions may be gone, or written by a later build.
    """
    kept = bool(stored.unreadable)
    async for entry in in_turns(list(stored.versions.entries())):
        kept = kept or "://" not in (entry.version().imported_from or "")
    if kept:
        raise Forbidden(
            f"{stored.name} has versions that were uploaded or copied from another name; to unload "
            "it needs a key with the scope 'admin', and one with 'upload' unloads names whose "
            "versions were all imported from outside"
        )
