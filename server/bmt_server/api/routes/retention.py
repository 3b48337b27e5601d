"""Retention rule of a name: the versions that the servers remove by themselves."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from bmt_server.api.access_log import audit
from bmt_server.api.routes.dependencies import app_state, mask_not_found, read_json, state_of
from bmt_server.errors import BadRequest
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.retention.rules import Rule
from bmt_server.registry.schemas import RetentionRule


async def show(request: Request, name: str) -> dict[str, Any]:
    """The rule that applies to a name, and the number of versions that it removes next."""
    return _response(request, await state_of(request, name))


async def set_rule(request: Request, name: str) -> dict[str, Any]:
    """Give a name a rule of its own, and apply it within seconds; without bounds all stays."""
    state, stored = app_state(request), await state_of(request, name)
    body = await read_json(request, RetentionRule)
    if not body.model_fields_set:
        raise BadRequest(
            "give keep_last, older_than, or both; null keeps all versions", code="rule_empty"
        )
    rule = Rule(body.keep_last, body.older_than)
    await state.retention.set_rule(stored.tenant, name, rule)
    audit(request, "retention", name, rule=rule.describe())
    current = state.replica.get(stored.tenant, name)
    if current is None:
        raise mask_not_found(name)
    return _response(request, current)


async def delete_rule(request: Request, name: str) -> Response:
    """Let the server's default rule apply to a name again."""
    state, stored = app_state(request), await state_of(request, name)
    await state.retention.set_rule(stored.tenant, name, None)
    audit(request, "retention", name, rule="default")
    return Response(status_code=204)


def _response(request: Request, stored: NameState) -> dict[str, Any]:
    """source: `name` for its own rule, else `server`. due: versions that go next."""
    rule = stored.rule(app_state(request).retention.default)
    return {
        "object": "retention",
        "name": stored.name,
        **rule.as_json(),
        "source": "server" if stored.retention is None else "name",
        "due": sum(1 for _ in stored.due(rule, time.time())),
    }
