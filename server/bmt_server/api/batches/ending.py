"""The two files of a batch that takes no further answers: written, kept as the tenant's, withdrawn.

Who has lost the batch's lease may still write its files. It has ids of its own for them, and
removes them when it sees that another server has ended the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from bmt_server.api.batches import files
from bmt_server.api.batches.answer import unanswered_row
from bmt_server.api.batches.lines import Lines
from bmt_server.api.batches.parts import Parts
from bmt_server.api.files.scratch import scratch_file
from bmt_server.errors import NotFound
from bmt_server.registry.batches.record import Batch
from bmt_server.registry.files.store import FileStore

_UNANSWERED = {
    "expired": ("batch_expired", "the completion window ended before this request could run"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request could run"),
    "failed": ("batch_failed", "the batch ended before this request could run"),
    "completed": ("batch_failed", "this request has no answer"),
}


@dataclass(frozen=True)
class Written:
    """Files of a batch that are written. completed, failed: rows of output and errors.

    unanswered: failed rows of lines without an answer. lost: of them those whose answers are in
    parts that cannot be read.
    """

    output: BinaryIO
    errors: BinaryIO
    completed: int
    failed: int
    unanswered: int
    lost: int


async def written(parts: Parts, batch: Batch, lines: Lines | None, stack: ExitStack) -> Written:
    """Write both files from the parts of the answers. stack: closes them. Raises ApiError."""
    cache_dir = parts.settings.cache_dir
    scratch, output, errors = (stack.enter_context(scratch_file(cache_dir)) for _ in range(3))
    known = await parts.store.parts(batch)
    kept = await files.read_parts(parts.files.objects, batch, known, scratch)
    code, message = _UNANSWERED[batch.ending or "completed"]

    def unanswered(index: int, custom_id: str) -> bytes:
        return unanswered_row(batch, index, custom_id, code, message)

    right, wrong = await asyncio.to_thread(
        files.write_rows, kept, lines if batch.total else None, output, errors, unanswered
    )
    lost = kept.lost if len(kept.rows) < batch.total else 0
    answered = sum(not ok for _, _, ok in kept.rows.values())
    return Written(output, errors, right, wrong, wrong - answered, lost)


async def publish(store: FileStore, batch: Batch, made: Written) -> None:
    """Keep the files that have rows as the tenant's. Raises PayloadTooLarge."""
    await _delete(store, batch, batch.stale_files)
    for name, file, file_id, rows in (
        ("output", made.output, batch.output_file, made.completed),
        ("error", made.errors, batch.error_file, made.failed),
    ):
        if rows and file_id is not None:
            await files.publish(store, batch, file_id, name, file, rows)


async def kept(store: FileStore, batch: Batch) -> dict[str, bool]:
    """The files of the batch that are the tenant's."""
    found = {}
    for name, file_id in (("output", batch.output_file), ("error", batch.error_file)):
        found[name] = False
        if file_id is not None:
            with contextlib.suppress(NotFound):
                await store.get(batch.tenant, file_id)
                found[name] = True
    return found


async def withdraw(parts: Parts, batch: Batch) -> None:
    """Delete the files of a run whose lease had ended, unless they are the batch's."""
    now = await parts.store.find(batch.id)
    if now is not None:
        own = (now.output_file, now.error_file)
        ids = (batch.output_file, batch.error_file)
        await _delete(
            parts.files, batch, [one for one in ids if one is not None and one not in own]
        )


async def _delete(store: FileStore, batch: Batch, ids: Sequence[str]) -> None:
    for file_id in ids:
        # One that still arrives is removed by who writes it, or with what was left behind.
        with contextlib.suppress(NotFound):
            await store.delete(batch.tenant, file_id)
