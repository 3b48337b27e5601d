"""Liveness and readiness probes."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from bmt_server.api.app_state import find_app_state


async def livez(request: Request) -> Response:
    """200 while the engine is neither dead nor hung.

    Independent of the registry: a restart would not repair it.
    """
    state = find_app_state(request.app)
    if state is None or await state.engine.healthy():
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "engine dead or hung"}, 503)


async def readyz(request: Request) -> Response:
    """200 once this server can answer requests for masks."""
    state = find_app_state(request.app)
    if state is not None and await state.ready():
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready"}, 503)
