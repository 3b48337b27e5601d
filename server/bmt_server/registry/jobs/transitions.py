"""Changes of a job's state: who may make them, and what they do to lease, queue and events.

Functions from a job and the registry's time to its next record, for `JobStore.change`. They raise
Conflict where the state does not allow them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmt_server.errors import Conflict
from bmt_server.registry.jobs.record import (
    Checkpoint,
    Job,
    JobError,
    JobEvent,
    JobState,
    Level,
)
from bmt_server.registry.jobs.store import Change
from bmt_server.registry.leased.record import Lease

#: Leases that a job may lose before it fails: one that ends its workers would end all of them.
MAX_LEASES = 8
#: Events that a job keeps, but for its end's: a tenant may pause and resume without end.
MAX_EVENTS = 2000
#: Steps whose metrics are events. Of a job with more, they are evenly apart.
MAX_METRICS = 1000
#: Checkpoints of a job that can be called; older ones are removed.
MAX_CHECKPOINTS = 3
_WANTED: dict[str, tuple[tuple[JobState, ...], JobState]] = {
    "cancel": (("queued", "running", "paused"), "cancelled"),
    "pause": (("queued", "running"), "paused"),
    "resume": (("paused",), "queued"),
}
_WORDS = {"cancelled": "Job cancelled", "paused": "Job paused", "queued": "Job resumed"}


def asked(what: str, job: Job, now_ms: int, least_ms: int = 0) -> Change | None:
    """A tenant's `cancel`, `pause` or `resume`; None if the job is in that state already.

    least_ms: the worker time that the tenant has at least when its job waits again.
    """
    states, target = _WANTED[what]
    if job.state == target:
        return None
    if job.state not in states:
        raise Conflict(
            f"{job.id} is {job.state}; {what} is for jobs that are {', '.join(states)}",
            code="job_state",
        )
    ended = {"finished_at": now_ms // 1000} if target == "cancelled" else {}
    # A lease that its tenant ends is none that a worker lost, however often a job is paused.
    alive = job.lease is not None and job.lease.until_ms > now_ms
    # Without its lease, the worker ends its part at its next word to a server.
    changed = job.model_copy(
        update={"state": target, "lease": None, "leases": job.leases - alive, **ended}
    )
    said = [event(now_ms, _WORDS[target])]
    return Change(changed, said if ended else _kept(job, said), job.spent_ms(now_ms), least_ms)


def leased(job: Job, now_ms: int, *, token: str, worker: str, lease_ms: int) -> Change | None:
    """A worker's lease of a job that waits, or whose worker is gone; None for any other."""
    lost = job.lease is not None and job.lease.until_ms <= now_ms
    if not (job.state == "queued" or (job.state == "running" and lost)):
        return None
    if job.leases >= MAX_LEASES:
        return _given_up(job, now_ms, "its worker was lost")
    lease = Lease(token=token, worker=worker, until_ms=now_ms + lease_ms, since_ms=now_ms)
    changes: dict[str, Any] = {"state": "running", "lease": lease, "leases": job.leases + 1}
    if job.started_at is None:
        changes["started_at"] = now_ms // 1000
    said = "Job started" if job.started_at is None else "Job continues"
    events = _kept(job, [event(now_ms, said)])
    return Change(job.model_copy(update=changes), events, job.spent_ms(now_ms))


def reported(
    job: Job,
    now_ms: int,
    *,
    token: str,
    lease_ms: int,
    metrics: Sequence[dict[str, Any]] = (),
    messages: Sequence[tuple[Level, str]] = (),
    steps: int | None = None,
) -> Change:
    """A worker's word that it is there, with metrics of steps and messages. Raises Conflict.

    A step that was reported before, by this worker or the one before it, counts once.
    """
    lease = held(job, token)
    events, step = [event(now_ms, text, level) for level, text in messages], job.step
    last = job.metrics
    steps = steps or job.steps
    apart = max(1, -(-(steps or 0) // MAX_METRICS))
    for entry in sorted(metrics, key=lambda entry: int(entry["step"])):
        if entry["step"] > step:
            step, last = int(entry["step"]), entry
            if step % apart == 0 or step in (1, steps):
                of = f"/{steps}" if steps else ""
                events.append(event(now_ms, f"Step {step}{of}: {_figure(entry)}", data=entry))
    # Never shortened: a request that prolongs it for its own time keeps what the worker asked for.
    until_ms = max(lease.until_ms, now_ms + lease_ms)
    lease = lease.model_copy(update={"until_ms": until_ms, "since_ms": now_ms})
    changes = {"lease": lease, "step": step, "metrics": last, "steps": steps}
    return Change(job.model_copy(update=changes), _kept(job, events), job.spent_ms(now_ms))


def _figure(entry: dict[str, Any]) -> str:
    """The figure of a step that says most: of rewards the reward."""
    if "train_reward_mean" in entry:
        return f"reward={entry['train_reward_mean']:.4g}"
    return f"loss={entry.get('train_loss', 0):.4g}"


def checkpointed(job: Job, now_ms: int, *, token: str, checkpoint: Checkpoint) -> Change | None:
    """A published checkpoint; the oldest beyond the limit leaves the record. Raises Conflict.

    None for a step that was published before, or one before it.
    """
    held(job, token)
    if job.checkpoints and checkpoint.step <= job.checkpoints[-1].step:
        return None
    kept = (*job.checkpoints, checkpoint)[-MAX_CHECKPOINTS:]
    said = (
        f"Checkpoint created at step {checkpoint.step}: {job.fine_tuned_model}:{checkpoint.alias}"
    )
    events = _kept(job, [event(now_ms, said)])
    return Change(job.model_copy(update={"checkpoints": kept}), events)


def resulted(job: Job, now_ms: int, *, token: str, file_id: str) -> Change | None:
    """The file of a job's metrics; None if it has one. Raises Conflict."""
    held(job, token)
    if job.result_file is not None:
        return None
    return Change(job.model_copy(update={"result_file": file_id}))


def finished(
    job: Job, now_ms: int, *, token: str, digest: str, trained_tokens: int | None
) -> Change:
    """The end of a job whose mask is published. Raises Conflict."""
    held(job, token)
    return ended(job, now_ms, "succeeded", digest=digest, trained_tokens=trained_tokens)


def failed(job: Job, now_ms: int, *, token: str, error: JobError) -> Change:
    """The end of a job that cannot be trained. Raises Conflict."""
    held(job, token)
    return ended(job, now_ms, "failed", error=error)


def released(job: Job, now_ms: int, *, token: str, reason: str, crashed: bool) -> Change:
    """A job given back by a worker; it waits again. Raises Conflict.

    crashed: by a fault of its host or a training that ended without a word, which counts as a lease
    that was lost; after MAX_LEASES of them the job fails.
    """
    held(job, token)
    if crashed and job.leases >= MAX_LEASES:
        return _given_up(job, now_ms, reason)
    leases = job.leases if crashed else job.leases - 1
    changes: dict[str, Any] = {"state": "queued", "lease": None, "leases": leases}
    if crashed:
        changes["fault"] = reason[:2048]
    events = _kept(job, [event(now_ms, reason, "warn")])
    return Change(job.model_copy(update=changes), events, job.spent_ms(now_ms))


def held(job: Job, token: str) -> Lease:
    """The job's lease, if the token is its token. Raises Conflict.

    A lease that has run out holds until another worker has the job: a slow word is no lost one.
    """
    if job.lease is None or job.lease.token != token or job.state != "running":
        raise Conflict(
            f"{job.id} is {job.state}, and this lease of it has ended", code="lease_lost"
        )
    return job.lease


def ended(job: Job, now_ms: int, state: JobState, **changes: Any) -> Change:
    """The last change of a job."""
    error: JobError | None = changes.get("error")
    said = {"succeeded": "The job has successfully completed"}.get(state, f"Job {state}")
    if error is not None:
        said += f": {error.message[:1900]}"
    update = {"state": state, "lease": None, "finished_at": now_ms // 1000, **changes}
    level: Level = "error" if state == "failed" else "info"
    return Change(job.model_copy(update=update), [event(now_ms, said, level)], job.spent_ms(now_ms))


def _given_up(job: Job, now_ms: int, reason: str) -> Change:
    """The end of a job that no worker has ended in all its leases."""
    said = f"{job.leases} workers gave it up or were lost; the last: {reason[:1800]}"
    if job.fault is not None and job.fault != reason:
        said += f"; before: {job.fault[:100]}"
    return ended(job, now_ms, "failed", error=JobError(code="worker_lost", message=said[:2048]))


def _kept(job: Job, events: Sequence[JobEvent]) -> Sequence[JobEvent]:
    return events[: max(0, MAX_EVENTS - job.events)]


def event(
    now_ms: int, message: str, level: Level = "info", *, data: dict[str, Any] | None = None
) -> JobEvent:
    """An event of this moment; with data, one of metrics."""
    return JobEvent(
        created_at=now_ms // 1000,
        message=message[:2048],
        level=level,
        type="metrics" if data is not None else "message",
        data=data,
    )
