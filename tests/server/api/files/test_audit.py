"""The lines that changes of files and jobs leave in the log, by the table of routes."""

from __future__ import annotations

import logging

import bmt_core
import pytest
from bmt_server.api.permissions import ROUTES

from tests.support.replica import make_mask
from tests.support.requests.rows import form, jsonl, supervised

AUDIT = "vllm.bmt_server.audit"
OURS = ("/v1/files", "/v1/batches", "/v1/fine_tuning", "/v1/workers")


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

    jobs, lease = "/v1/fine_tuning/jobs", {"base": "ab" * 32, "worker": "w"}
    file = await send("POST", "/v1/files", "file_create", **form(jsonl([supervised()])))
    body = {"model": "tiny", "training_file": file["id"]}
    job = (await send("POST", jobs, "job_create", json=body))["id"]
    for what in ("pause", "resume"):
        await send("POST", f"{jobs}/{job}/{what}", f"job_{what}")
    await send("POST", f"{jobs}/{job}/resume")  # it is queued already
    held = await send("POST", "/v1/workers/lease", "job_lease", json=lease)
    ours = f"/v1/workers/jobs/{job}"
    # Every few seconds, of each worker: the job's events have what it says.
    await send("POST", f"{ours}/report", json={"token": held["token"]})
    ended = {"token": held["token"], "outcome": "released", "reason": "stopped"}
    await send("POST", f"{ours}/end", "job_release", json=ended)
    held = await send("POST", "/v1/workers/lease", "job_lease", json=lease)
    mask, headers = bmt_core.encode(make_mask()), {"x-bmt-lease": held["token"]}
    headers["content-type"] = "application/octet-stream"
    await send("PUT", f"{ours}/mask", "publish", "job_end", content=mask, headers=headers)
    other = (await send("POST", jobs, "job_create", json=body))["id"]
    await send("POST", f"{jobs}/{other}/cancel", "job_cancel")
    await send("DELETE", f"/v1/files/{file['id']}", "file_delete")
    lines = form(jsonl([{"custom_id": "a"}]), purpose="batch")
    file = await send("POST", "/v1/files", "file_create", **lines)
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    asked["completion_window"] = "24h"
    batch = (await send("POST", "/v1/batches", "batch_create", json=asked))["id"]
    await send("POST", f"/v1/batches/{batch}/cancel", "batch_cancel")
    for route in ROUTES:
        if route.path.pattern.startswith(OURS):
            for method in route.methods - {"GET", "HEAD"}:
                paths = [path for tried_method, path in tried if tried_method == method]
                assert any(map(route.path.fullmatch, paths)), (method, route.path.pattern)
