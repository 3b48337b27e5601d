"""Requests about fine-tuning jobs to a replica without an engine: a tenant's, and a worker's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import bmt_core
import openai

from tests.support.replica import Api, make_mask, replica
from tests.support.requests.rows import form, graded, jsonl, pair, supervised
from tests.support.scenarios.nodes import node
from tests.support.scenarios.registry import new_key

ROWS = {"supervised": supervised(), "dpo": pair(), "reinforcement": graded()}
BASE = "ab" * 32


def stock(api, key="upload"):
    return openai.AsyncOpenAI(
        api_key=api.keys[key], base_url="http://test/v1", http_client=api.client(key), max_retries=0
    )


async def file_of(api, kind="supervised", key="upload"):
    async with api.client(key) as client:
        answer = await client.post("/v1/files", **form(jsonl([ROWS[kind]] * 3)))
        return answer.json()["id"]


async def started(api, key="upload", **more):
    """A new job's id."""
    async with stock(api, key) as client:
        file = await file_of(api, key=key)
        job = await client.fine_tuning.jobs.create(model="tiny", training_file=file, **more)
        return job.id


async def work(api, path, method="POST", key="admin", **options):
    async with api.client(key) as client:
        return await client.request(method, f"/v1/workers/{path}", **options)


async def lease(api, seconds=60, worker="w"):
    answer = await work(
        api, "lease", json={"base": BASE, "worker": worker, "lease_seconds": seconds}
    )
    return answer.json() if answer.status_code == 200 else None


async def report(api, job, **more):
    return await work(api, f"jobs/{job['id']}/report", json={"token": job["token"], **more})


async def publish(api, job, mask=None):
    return await work(
        api,
        f"jobs/{job['id']}/mask",
        "PUT",
        content=bmt_core.encode(mask or make_mask()),
        headers={"x-bmt-lease": job["token"], "content-type": "application/octet-stream"},
    )


async def end(api, job, outcome, reason="no"):
    body = {"token": job["token"], "outcome": outcome, "reason": reason}
    return await work(api, f"jobs/{job['id']}/end", json=body)


async def status_of(api, job_id, key="upload"):
    async with stock(api, key) as client:
        return (await client.fine_tuning.jobs.retrieve(job_id)).status


@asynccontextmanager
async def full_registry(folder: Path) -> AsyncIterator[tuple[Api, Callable[[], None]]]:
    """A replica with a registry of its own, and a function that uses up the registry's memory."""
    with node(folder / "r") as one:
        keys = {"admin": await new_key(one.url)}
        changes = {"files_url": (folder / "files").as_uri()}
        async with replica(one.url, folder / "cache", keys, **changes) as api:

            def fill() -> None:
                one.client().set("filler", "x" * (4 << 20))
                used = int(one.client().info("memory")["used_memory"])
                # Below what is used, whatever connections take or give back.
                one.client().config_set("maxmemory", used - (1 << 20))

            yield api, fill
