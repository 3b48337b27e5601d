"""The caller's key, the served base and the limits of requests, for clients before a long job."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from bmt_server.api.permissions import ROLLOUT_PREFIX
from bmt_server.api.request_limits import MAX_PROMPTS, MAX_VALUES
from bmt_server.api.routes.dependencies import app_state
from bmt_server.registry.schemas import Principal


async def show(request: Request) -> dict[str, Any]:
    """Id, tenant and scopes of the key, the base model, and the limits that apply to this key.

    A limit of null or 0 is none.
    """
    state = app_state(request)
    principal: Principal = request.scope["bmt.principal"]
    settings = state.settings
    versions, stored, _ = state.replica.stored(principal.tenant)
    return {
        "object": "key",
        "key_id": principal.key_id,
        "tenant": principal.tenant,
        "scopes": sorted(principal.scopes),
        "base": {
            "names": state.engine.base_names,
            "fingerprint": settings.fingerprint,
            "precision": settings.precision or None,
            "quantized": settings.quantized,
        },
        "limits": {
            "max_model_len": state.engine.max_model_len,
            "max_n": MAX_VALUES["n"],
            "max_prompts": MAX_PROMPTS,
            "max_sparsity": settings.max_sparsity,
            "max_upload_bytes": state.max_upload_bytes,
            "key_concurrency": settings.key_concurrency,
            "key_rate": settings.key_rate,
            "queue": settings.queue,
        },
        "budgets": {
            "key": state.limit_store.of("key", principal.key_id).to_dict(),
            "tenant": state.limit_store.of("tenant", principal.tenant).to_dict(),
        },
        "stored": {"versions": versions, "bytes": stored},
        "rollout_prefix": ROLLOUT_PREFIX,
    }
