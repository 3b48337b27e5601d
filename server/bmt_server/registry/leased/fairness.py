"""The next job of a worker: tenants in proportion, and jobs of workers that died first.

Among the tenants that have work waiting, the one that had the least worker time is next. A job
that runs counts as `_RUNNING_MS` ahead, so that several workers do not all take one tenant's. A
tenant that had nothing waiting comes back with as much as the least of the others: it saves up no
time while it is away (start-time fair queueing).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Container, Iterable

from bmt_server.registry.leased.store import R, Waiting, WorkStore

logger = logging.getLogger("vllm.bmt_server")

_RUNNING_MS = 60_000
# Entries that are looked at for one lease: others take some of them in between.
_TAKES = 16
# Age of an entry with a record that cannot be read, after which it is no newer server's.
_FOREIGN_S = 86_400


async def next_records(store: WorkStore[R], base: str, own: Iterable[str] = ()) -> AsyncIterator[R]:
    """Records to lease next of a base, looked up again each time, until none waits.

    own: ids that this process has the leases of, whatever the registry says after an outage.
    Leases that ended while this process or its registry was away have their time once more: their
    holders could not prolong them, and may be at work. Entries without a valid record are removed;
    those with a record that cannot be read after a day, for until then they may be a newer
    server's. Raises RegistryDown.
    """
    foreign = set(own)
    for _ in range(_TAKES):
        waiting = await store.waiting(base)
        chosen = next_job(waiting, foreign)
        if chosen is None:
            return
        tenant, work_id = chosen
        record = await store.find(work_id)
        if record is not None and (record.tenant, record.base) == (tenant, base):
            lease = record.lease
            if lease is not None and store.up_for_ms < lease.until_ms - lease.since_ms:
                foreign.add(work_id)
            else:
                yield record
            continue
        if record is None and _recent(waiting, work_id) and await store.exists(work_id):
            foreign.add(work_id)
            continue
        # Of no server of ours: whoever wrote it runs nothing.
        one = store.names.one
        logger.error("The queue has an entry %s without a valid %s; it is removed.", work_id, one)
        await store.drop(base, tenant, work_id)


def next_job(waiting: Waiting, without: Container[str] = ()) -> tuple[str, str] | None:
    """Tenant and id of the job to lease; None if there is none. without: ids of others'."""
    expired = [
        (end, tenant, id)
        for tenant, id, end in waiting.leased
        if end <= waiting.now_ms and id not in without
    ]
    if expired:
        _, tenant, job_id = min(expired)
        return tenant, job_id
    oldest: dict[str, tuple[int, str]] = {}
    for place, (tenant, job_id, _) in enumerate(waiting.queued):
        if job_id not in without:
            oldest.setdefault(tenant, (place, job_id))
    if not oldest:
        return None
    tenant = min(oldest, key=lambda tenant: (cost_ms(waiting, tenant), oldest[tenant][0]))
    return tenant, oldest[tenant][1]


def _recent(waiting: Waiting, work_id: str) -> bool:
    since_s = waiting.now_ms / 1000 - _FOREIGN_S
    return any(id == work_id and at > since_s for _, id, at in waiting.queued) or any(
        id == work_id and end / 1000 > since_s for _, id, end in waiting.leased
    )


def cost_ms(waiting: Waiting, tenant: str) -> int:
    """Worker time that counts against a tenant."""
    running = sum(of == tenant and end > waiting.now_ms for of, _, end in waiting.leased)
    return waiting.spent_ms.get(tenant, 0) + running * _RUNNING_MS


def least_ms(waiting: Waiting, tenant: str) -> int:
    """The worker time that a tenant has at least when it adds a job; 0 if it has others there."""
    active = {of for of, _, _ in [*waiting.queued, *waiting.leased]}
    if tenant in active or not active:
        return 0
    return min(waiting.spent_ms.get(other, 0) for other in active)
