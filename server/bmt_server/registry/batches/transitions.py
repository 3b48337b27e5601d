"""Changes of a batch's state: who may make them, and what they do to its lease and its parts.

Functions from a batch and the registry's time to its next record, for `BatchStore.change`. They
raise Conflict where the state does not allow them, `lease_lost` above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmt_server.errors import Conflict
from bmt_server.registry.batches.record import MAX_ERRORS, Batch, BatchError, Ending, Part
from bmt_server.registry.batches.store import Change
from bmt_server.registry.files.record import new_file_id
from bmt_server.registry.leased.record import Lease

#: Leases that a batch may lose before it ends: a line that ends its servers would end all of them.
MAX_LOSSES = 8
#: Files of lost servers whose ids are kept.
MAX_STALE = 2 * MAX_LOSSES
#: Code of the error of a batch whose answers have no place in the tenant's quota.
NO_PLACE = "quota_exceeded"
#: Code of the error of a batch whose key or tenant has spent a budget.
NO_BUDGET = "budget_spent"
#: Worker of the lease of a batch that waits for a place.
NO_WORKER = ""


def leased(batch: Batch, now_ms: int, *, token: str, worker: str, lease_ms: int) -> Change | None:
    """A server's lease of a batch that waits, or whose server is gone; None for any other."""
    over = batch.lease is not None and batch.lease.until_ms <= now_ms
    if batch.ended or not (batch.lease is None or over):
        return None
    lost = batch.lease is not None and batch.lease.worker != NO_WORKER
    lease = Lease(token=token, worker=worker, until_ms=now_ms + lease_ms, since_ms=now_ms)
    changes: dict[str, Any] = {"lease": lease, "losses": batch.losses + lost}
    if lost and batch.ending is not None:
        # The other server may still write its files: nothing of it is in these ones.
        changes |= _chosen() | {"stale_files": (*batch.stale_files, *_files(batch))[-MAX_STALE:]}
    changed = batch.model_copy(update=changes)
    spent_ms = batch.spent_ms(now_ms)
    if changed.losses > MAX_LOSSES and batch.ending is None:
        error = BatchError(
            code="servers_lost",
            message=f"{changed.losses} servers were lost while they ran it",
        )
        return Change(_frozen(changed, now_ms, "failed", [error]), (), spent_ms)
    return Change(changed, (), spent_ms)


def prolonged(batch: Batch, now_ms: int, *, token: str, lease_ms: int) -> Change:
    """A server's word that it is there. Raises Conflict."""
    lease = held(batch, token)
    until_ms = max(lease.until_ms, now_ms + lease_ms)
    lease = lease.model_copy(update={"until_ms": until_ms, "since_ms": now_ms})
    return Change(batch.model_copy(update={"lease": lease}), (), batch.spent_ms(now_ms))


def released(batch: Batch, now_ms: int, *, token: str, crashed: bool = False) -> Change:
    """A batch given back by a server that ends; it waits again. Raises Conflict.

    crashed: its engine failed, which counts as a server that was lost: a line may have ended it.
    """
    held(batch, token)
    changes = {"lease": None, "losses": batch.losses + crashed}
    return Change(batch.model_copy(update=changes), (), batch.spent_ms(now_ms))


def validated(batch: Batch, now_ms: int, *, token: str, total: int) -> Change | None:
    """A batch whose lines are valid; None if that is known. Raises Conflict."""
    held(batch, token)
    if batch.state != "validating":
        return None
    changes = {"state": "in_progress", "in_progress_at": now_ms // 1000, "total": total}
    return Change(batch.model_copy(update=changes))


def refused(
    batch: Batch, now_ms: int, *, token: str, errors: Sequence[BatchError]
) -> Change | None:
    """The end of a batch whose file is not valid. Raises Conflict."""
    held(batch, token)
    if batch.state != "validating":
        return None
    changes = {"errors": tuple(errors[:MAX_ERRORS]), "ending": "failed"}
    return _ended(batch.model_copy(update=changes), now_ms)


def answered(batch: Batch, now_ms: int, *, token: str, part: Part) -> Change | None:
    """Further answers; None if they are there, after an answer that was lost. Raises Conflict."""
    held(batch, token)
    if batch.last_part == part.name:
        return None
    if batch.ending is not None or batch.ended:
        raise Conflict(f"{batch.id} is {batch.state}, and takes no answers", code="batch_state")
    changes = {
        "completed": batch.completed + part.lines - part.failed,
        "failed": batch.failed + part.failed,
        "last_part": part.name,
        "part_bytes": batch.part_bytes + part.bytes,
    }
    return Change(batch.model_copy(update=changes), [part], 0)


def frozen(
    batch: Batch, now_ms: int, *, token: str, ending: Ending, errors: Sequence[BatchError] = ()
) -> Change | None:
    """A batch that takes no further answers, and whose files are written next. Raises Conflict."""
    held(batch, token)
    if batch.ending is not None or batch.ended:
        return None
    if batch.state == "cancelling":
        ending = "cancelled"
    return Change(_frozen(batch, now_ms, ending, errors))


def _frozen(batch: Batch, now_ms: int, ending: Ending, errors: Sequence[BatchError]) -> Batch:
    changes: dict[str, Any] = {
        "ending": ending,
        "errors": (*batch.errors, *errors)[:MAX_ERRORS],
        "finalizing_at": now_ms // 1000,
        **_chosen(),
    }
    if ending != "cancelled":
        changes["state"] = "finalizing"
    return batch.model_copy(update=changes)


def noted(batch: Batch, now_ms: int, *, token: str, lease_ms: int, error: BatchError) -> Change:
    """An error that keeps a batch from going on. Raises Conflict.

    No server has it, and one tries again when the lease has ended.
    """
    lease = held(batch, token)
    changes = {"worker": NO_WORKER, "until_ms": now_ms + lease_ms, "since_ms": now_ms + lease_ms}
    lease = lease.model_copy(update=changes)
    others = tuple(one for one in batch.errors if one.code != error.code)
    errors = (*others, error)[-MAX_ERRORS:]
    noted = batch.model_copy(update={"lease": lease, "errors": errors})
    return Change(noted, (), batch.spent_ms(now_ms))


def ended(
    batch: Batch, now_ms: int, *, token: str, output: bool, error: bool, completed: int, failed: int
) -> Change:
    """The end of a batch whose files are written. Raises Conflict.

    output, error: the files that there are; completed, failed: their rows.
    """
    held(batch, token)
    changes: dict[str, Any] = {"completed": completed, "failed": failed, "stale_files": ()}
    if not output:
        changes["output_file"] = None
    if not error:
        changes["error_file"] = None
    if output or error:
        # Of files that had no place for a while.
        over = {NO_PLACE, NO_BUDGET} if batch.ending == "completed" else {NO_PLACE}
        changes["errors"] = tuple(one for one in batch.errors if one.code not in over)
    return _ended(batch.model_copy(update=changes), now_ms)


def cancelled(batch: Batch, now_ms: int) -> Change | None:
    """A tenant's end of a batch; None if that was asked for already. Raises Conflict."""
    if batch.state in ("cancelling", "cancelled"):
        return None
    if batch.state == "validating":
        changes = {"cancelling_at": now_ms // 1000, "ending": "cancelled"}
        return _ended(batch.model_copy(update=changes), now_ms)
    if batch.state != "in_progress":
        raise Conflict(
            f"{batch.id} is {batch.state}; cancel is for batches that are validating or "
            "in_progress",
            code="batch_state",
        )
    # Its server notices within seconds, and writes the answers that there are.
    changes = {"state": "cancelling", "cancelling_at": now_ms // 1000}
    return Change(batch.model_copy(update=changes))


def held(batch: Batch, token: str) -> Lease:
    """The batch's lease, if the token is its token. Raises Conflict.

    A lease that has run out holds until another server has the batch: a slow word is no lost one.
    """
    if batch.lease is None or batch.lease.token != token or batch.ended:
        raise Conflict(
            f"{batch.id} is {batch.state}, and this lease of it has ended", code="lease_lost"
        )
    return batch.lease


def _chosen() -> dict[str, str]:
    return {"output_file": new_file_id(), "error_file": new_file_id()}


def _files(batch: Batch) -> list[str]:
    return [id for id in (batch.output_file, batch.error_file) if id is not None]


def _ended(batch: Batch, now_ms: int) -> Change:
    changes = {"state": batch.ending, "lease": None, "ended_at": now_ms // 1000}
    return Change(batch.model_copy(update=changes), (), batch.spent_ms(now_ms))
