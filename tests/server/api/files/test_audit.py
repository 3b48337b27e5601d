"""The lines that changes of files leave in the log, by the table of routes."""

from __future__ import annotations

import logging

import pytest
from bmt_server.api.permissions import ROUTES

from tests.support.requests.rows import form, jsonl, supervised

AUDIT = "vllm.bmt_server.audit"
OURS = "/v1/files"


@pytest.fixture
def actions(caplog, monkeypatch):
    """Actions in the audit log since the last call."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, AUDIT)

    def taken():
        found = [record.action for record in caplog.records if record.name == AUDIT]
        caplog.clear()
        return found

    return taken


async def test_each_change_leaves_its_line(files, actions):
    tried = []

    async def send(method, path, *expected, **options):
        async with files.client() as client:
            answer = await client.request(method, path, **options)
        assert answer.is_success, (path, answer.text)
        assert tuple(actions()) == expected, path
        tried.append((method, path))
        return answer.json()

    file = await send("POST", "/v1/files", "file_create", **form(jsonl([supervised()])))
    await send("DELETE", f"/v1/files/{file['id']}", "file_delete")
    for route in ROUTES:
        if route.path.pattern.startswith(OURS):
            for method in route.methods - {"GET", "HEAD"}:
                paths = [path for tried_method, path in tried if tried_method == method]
                assert any(map(route.path.fullmatch, paths)), (method, route.path.pattern)
