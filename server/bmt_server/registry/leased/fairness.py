"""The next job of a worker: tenants in proportion, and jobs of workers that died first.

Among the tenants that have work waiting, the one that had the least worker time is next. A job
that runs counts as `_RUNNING_MS` ahead, so that several workers do not all take one tenant's. A
tenant that had nothing waiting comes back with as much as the least of the others: it saves up no
time while it is away (start-time fair queueing).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from bmt_server.registry.leased.store import R, Waiting, WorkStore

logger = logging.getLogger("vllm.bmt_server")

_RUNNING_MS = 60_000
# Entries that are looked at for one lease: others take some of them in between.
_TAKES = 16


async def next_records(store: WorkStore[R], base: str) -> AsyncIterator[R]:
    """What to lease next of a base, looked up again each time, until none waits.

    Entries without a valid record are removed. Raises RegistryDown.
    """
    for _ in range(_TAKES):
        chosen = next_job(await store.waiting(base))
        if chosen is None:
            return
        tenant, work_id = chosen
        record = await store.find(work_id)
        if record is not None and (record.tenant, record.base) == (tenant, base):
            yield record
            continue
        # Of no server of ours: whoever wrote it runs nothing.
        one = store.names.one
        logger.error("The queue has an entry %s without a valid %s; it is removed.", work_id, one)
        await store.drop(base, tenant, work_id)


def next_job(waiting: Waiting) -> tuple[str, str] | None:
    """Tenant and id of the job to lease; None if there is none."""
    expired = [(end, tenant, id) for tenant, id, end in waiting.leased if end <= waiting.now_ms]
    if expired:
        _, tenant, job_id = min(expired)
        return tenant, job_id
    if not waiting.queued:
        return None
    place = {tenant: at for at, (tenant, _) in reversed(list(enumerate(waiting.queued)))}
    tenant = min(place, key=lambda tenant: (cost_ms(waiting, tenant), place[tenant]))
    return waiting.queued[place[tenant]]


def cost_ms(waiting: Waiting, tenant: str) -> int:
    """Worker time that counts against a tenant."""
    running = sum(of == tenant and end > waiting.now_ms for of, _, end in waiting.leased)
    return waiting.spent_ms.get(tenant, 0) + running * _RUNNING_MS


def least_ms(waiting: Waiting, tenant: str) -> int:
    """The worker time that a tenant has at least when it adds a job; 0 if it has others there."""
    active = {of for of, _ in waiting.queued} | {of for of, _, _ in waiting.leased}
    if tenant in active or not active:
        return 0
    return min(waiting.spent_ms.get(other, 0) for other in active)
