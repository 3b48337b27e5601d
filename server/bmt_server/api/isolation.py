"""Isolation of tenants in the engine: the salt of the prefix cache, by the tenant of a request.

Response times reveal what the prefix cache holds. Masks are separated by their names, which vLLM
hashes; the salt separates the tenants. It does not pass through the bodies of requests, where each
route of vLLM has its own field or none: the middleware sets the tenant for everything that runs on
behalf of the request, and each call of the engine reads it (`engine_vllm/request_hooks.py`). So a
route needs no entry in any list.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar

from bmt_server.registry.schemas import DEFAULT_TENANT

_SALT: ContextVar[str | None] = ContextVar("bmt_cache_salt", default=None)


def salt_of(tenant: str) -> str | None:
    """Salt of a tenant's prefix cache: 64 hex digits, or None for the default tenant."""
    if tenant == DEFAULT_TENANT:
        return None
    return hashlib.sha256(f"tenant:{tenant}".encode()).hexdigest()


def isolate(tenant: str) -> None:
    """Let engine calls of the current task, and of tasks that it starts, use the tenant's salt."""
    _SALT.set(salt_of(tenant))


def current_salt() -> str | None:
    """Salt for engine calls of the current task."""
    return _SALT.get()
