"""Jobs of three tenants while workers, server and registry are killed at random.

Each job ends exactly once, with one succeeded event and the mask that a job has which was not
disturbed; none is lost, and none answers another tenant. Worker time is shared while all three have
jobs waiting. A forged entry of the queue runs nothing.
"""

from __future__ import annotations

import asyncio
import json
import time

import bmt_core
import httpx2
import pytest
import redis
import torch
from bmt_client import BmtClient, BmtClientError
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection

from tests.support.requests.rows import jsonl, supervised
from tests.support.scenarios.figures import SCALE, Figures, scaled
from tests.support.scenarios.nodes import node
from tests.support.tiny_model import save_tiny_llama
from tests.support.training.job_parts import Killer, Parts

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

TENANTS = ("default", "second", "third")
WORKERS, SEED = 2, 29
EVERY_S = (8.0, 25.0)
JOB_S = 240  # at most, of one job, on a slow machine
FORGED = "ftjob-" + "f" * 24


async def make_keys(url: str) -> tuple[dict[str, str], str]:
    store = RegistryConnection(url)
    keys = ApiKeyStore(store)
    made = {t: await keys.create(("infer", "upload"), tenant=t) for t in TENANTS}
    worker = await keys.create(("train",))
    await store.close()
    assert worker is not None
    return {t: key[0] for t, key in made.items() if key is not None}, worker[0]


def persistent(request):
    """The answer to a request that is sent again while a part is away."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return request()
        except (BmtClientError, redis.RedisError) as error:
            lost = not isinstance(error, BmtClientError) or error.retryable
            if not lost or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def forge(store: redis.Redis, base: str, record: dict) -> None:
    """An entry as whoever writes the registry would make it: a kind that no server makes."""
    forged = {**record, "id": FORGED, "method": {"type": "shell", "command": "id"}}
    store.hset("{bmt}:jobs", FORGED, json.dumps(forged))
    store.zadd(f"{{bmt}}:job-queue:{base}", {f"default/{FORGED}": 0})


def test_fine_tuning_jobs(tmp_path):
    per_tenant = scaled(10, least=2)
    model = save_tiny_llama(tmp_path / "base", torch.bfloat16)
    base = bmt_core.fingerprint(model)
    figures = Figures("fine_tuning_jobs")
    with node(tmp_path / "registry", "--appendfsync", "always") as registry:
        keys, worker_key = asyncio.run(make_keys(registry.url))
        parts = Parts(tmp_path, model, registry, worker_key, WORKERS)
        try:
            parts.ready()
            run(parts, keys, base, per_tenant, tmp_path, figures)
        finally:
            parts.close()
    figures.end()


def run(parts, keys, base, per_tenant, folder, figures) -> None:
    clients = {t: BmtClient(parts.url, key, max_retries=6) for t, key in keys.items()}
    rows = [supervised(f"{n}+1?", str(n + 1)) for n in range(16)]
    (folder / "train.jsonl").write_bytes(jsonl(rows))
    files = {
        t: persistent(lambda c=c: c.files.upload(folder / "train.jsonl"))
        for t, c in clients.items()
    }
    jobs = {
        job.id: tenant
        for _ in range(per_tenant)
        for tenant, client in clients.items()
        for job in [
            client.jobs.create(files[tenant].id, "tiny", hyperparameters={"n_epochs": 5}, seed=1)
        ]
    }
    store = parts.registry.client()
    forge(store, base, json.loads(store.hget("{bmt}:jobs", next(iter(jobs)))))
    shared, left = {}, set(jobs)
    started = time.monotonic()
    with Killer(parts, SEED, EVERY_S) as killer:
        while left:
            assert time.monotonic() - started < JOB_S * len(jobs), (
                f"{len(left)} jobs have not ended"
            )
            try:
                waiting = {
                    m.split("/")[0] for m in store.zrange(f"{{bmt}}:job-queue:{base}", 0, -1)
                }
                if waiting >= set(TENANTS):
                    shared = {t: int(ms) for t, ms in store.hgetall("{bmt}:job-seconds").items()}
                states = {i: json.loads(r)["state"] for i, r in store.hgetall("{bmt}:jobs").items()}
                left = {i for i in jobs if states[i] in ("queued", "running")}
            except redis.RedisError:
                pass  # it is being killed
            time.sleep(1)
    took = time.monotonic() - started
    check(
        parts,
        clients,
        keys,
        jobs,
        figures,
        size=f"{len(jobs)} jobs, {WORKERS} workers, seed {SEED}",
    )
    size = f"{len(jobs)} jobs of 3 tenants, {WORKERS} workers"
    for what, count in killer.kills.items():
        figures.record(f"kills_{what}", count, "kills", size=size)
    figures.record("duration", took, "s", size=size)
    total = sum(shared.values())
    if total:
        points = 100 * max(abs(shared.get(t, 0) / total - 1 / 3) for t in TENANTS)
        # Of few jobs, one is more than the bound.
        bound = "<= 10" if SCALE >= 1 else ""
        figures.record("share_off_a_third", points, "points", bound, size=size)
    assert store.hget("{bmt}:jobs", FORGED), "the forged record itself stays, for its reader"
    queues = [f"{{bmt}}:job-{kind}:{base}" for kind in ("queue", "leases")]
    left_behind = sum(store.zcard(queue) for queue in queues)
    figures.record("entries_left", left_behind, "entries", "== 0", size=size)


def check(parts, clients, keys, jobs, figures, size) -> None:
    """Each job's end, versions and events, and who may use its mask."""
    parts.ready()
    records = {i: json.loads(r) for i, r in parts.registry.client().hgetall("{bmt}:jobs").items()}
    ended_once = stray = leaked = 0
    masks = set()
    for id, tenant in jobs.items():
        job = persistent(lambda id=id, tenant=tenant: clients[tenant].jobs.get(id))
        events = persistent(lambda id=id, tenant=tenant: clients[tenant].jobs.events(id))
        ends = [e for e in events if e.message == "The job has successfully completed"]
        ended_once += job.status == "succeeded" and len(ends) == 1
        if job.status != "succeeded":
            print(id, job.status, job.error, [e.message for e in events if e.type == "message"])
            continue
        name, record = job.fine_tuned_model, records[id]
        versions = persistent(lambda t=tenant, n=name: clients[t].versions(n))
        # Its mask, and its checkpoints: what a kill left half-made is not there.
        known = {record["digest"], *(one["digest"] for one in record["checkpoints"])}
        stray += len({version.digest for version in versions} ^ known)
        masks.add(persistent(lambda t=tenant, n=name: clients[t].get(n)).digest)
        for other in TENANTS:
            answer = httpx2.post(
                f"{parts.url}/v1/chat/completions",
                json={"model": name, "messages": [{"role": "user", "content": "1+1?"}]},
                headers={"Authorization": f"Bearer {keys[other]}"},
                timeout=60,
            )
            leaked += answer.status_code != (200 if other == tenant else 404)
    figures.record("ended_exactly_once", ended_once, "jobs", f"== {len(jobs)}", size=size)
    figures.record("stray_versions", stray, "versions", "== 0", size=size)
    # All have the same rows and seed.
    figures.record("different_masks", len(masks), "masks", "== 1", size=size)
    figures.record("answers_to_the_wrong_tenant", leaked, "answers", "== 0", size=size)
