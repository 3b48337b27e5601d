"""One batch that this process has the lease of: its file is checked, its lines answered, kept.

Answers are kept a few seconds after they are there, so a server that is killed costs those seconds:
their lines are answered again, and no row is in the files twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import ExitStack
from typing import Any, Literal

from bmt_server.api.asgi import App
from bmt_server.api.batches import files
from bmt_server.api.batches.ending import kept, publish, withdraw, written
from bmt_server.api.batches.line_queue import LineQueue
from bmt_server.api.batches.lines import LineCheck, Lines
from bmt_server.api.batches.parts import Parts
from bmt_server.api.body.bounds import BodyBounds
from bmt_server.api.files.scratch import scratch_file
from bmt_server.api.permissions import find_route
from bmt_server.errors import ApiError, BlobsDown, Conflict, NotFound, PayloadTooLarge
from bmt_server.registry.batches import transitions
from bmt_server.registry.batches.record import Batch, BatchError, Ending
from bmt_server.registry.connection import end_task

logger = logging.getLogger("vllm.bmt_server")

#: Seconds of a lease without a word.
LEASE_S = 30.0
_PROLONG_S, _LOOK_S = 10.0, 2.0
# Pause between attempts to keep what the registry or the files' place did not take.
_AGAIN_S = 2.0
# First pause of a batch whose files have no place in the tenant's quota, and the end of attempts.
_NO_PLACE_S, _GIVE_UP_S = 60.0, 7 * 86_400
# Longest wait for a budget that is spent, for its bounds may be raised meanwhile.
_LONGEST_LIMIT_S = 600.0
# Time in which a part that is missing may come back, before its lines are without an answer.
_PARTS_S = 3600.0
# Rows and bytes of a part, and the time that rows wait for one: it grows with the run, so that a
# day has hundreds of parts and not ten thousand.
_PART_ROWS, _PART_BYTES = 512, 1 << 20
_FLUSH_S, _FLUSH_SHARE = 2.0, 0.01
_TICK_S = 0.02

#: lost: another server has the batch, or may. released: this one ends. full: the tenant's quota has
#: no place for further answers. limited: its key's or tenant's budget is spent for a while.
Stop = Literal["lost", "released", "full", "limited", "expired", "cancelled", "failed"]


class BatchRun:
    """The run of one leased batch, to its end or to that of the lease. app: with all its layers."""

    def __init__(self, parts: Parts, app: App, batch: Batch) -> None:
        assert batch.lease is not None
        self._parts, self._app = parts, app
        self._batch, self._token = batch, batch.lease.token
        self._stop: Stop | None = None
        self._error: BatchError | None = None
        self._changed = asyncio.Lock()
        self._lines: Lines | None = None
        self._queue: LineQueue | None = None

    @property
    def id(self) -> str:
        return self._batch.id

    def leave(self) -> None:
        """Give the batch back soon: lines that run have no answer, and others' are kept."""
        if self._stop is None:
            self._stop = "released"
        if self._queue is not None:
            self._queue.leave()

    async def run(self) -> None:
        """Run the batch; never raises."""
        batch = self._batch
        watching = asyncio.create_task(self._watch(), name="bmt-batch-watch")
        try:
            with ExitStack() as stack:
                stack.enter_context(self._parts.room.batch(batch.id, batch.key_id))
                await self._run(stack)
        except Conflict as error:
            logger.info("%s: %s.", batch.id, error)
        except (ApiError, OSError) as error:
            # OSError: of the disk, in a file without a name.
            logger.warning("%s waits: %s.", batch.id, error)
            await self._release()
        except asyncio.CancelledError:
            await self._release()
            raise
        except Exception:
            # Its lease runs out, which counts: it is not tried without end.
            logger.exception("%s failed on this server.", batch.id)
        finally:
            await end_task(watching)

    async def _run(self, stack: ExitStack) -> None:
        cache_dir = self._parts.settings.cache_dir
        batch = self._batch
        runs = batch.state == "in_progress" and batch.ending is None
        if runs and time.time() < batch.expires_at:
            # Before all of its files are read for nothing.
            await self._look_for_place(batch.completed + batch.failed < batch.total)
            if self._stop == "full":
                await self._wait_for_quota()
                return
        await self._load(stack.enter_context(scratch_file(cache_dir)))
        if self._batch.state == "validating" and not await self._validate():
            return
        if self._batch.ending is None:
            await self._answer(stack)
        if self._batch.ending is not None and not self._batch.ended:
            await self._finish(stack)

    async def _load(self, file: Any) -> None:
        """Read the input, if it is there. Raises ApiError if it cannot be read now."""
        try:
            await files.read_input(self._parts.files, self._batch, file)
        except (NotFound, BlobsDown) as error:
            if isinstance(error, BlobsDown) and error.code != "file_damaged":
                raise
            self._stop = "failed"
            self._error = BatchError(
                code=error.code, message=str(error)[:1000], param="input_file_id"
            )
            return
        self._lines = await asyncio.to_thread(Lines.read, file)

    def _check(self) -> LineCheck:
        route = find_route("POST", self._batch.endpoint)
        prompts = route.prompts if route is not None else 1
        return LineCheck(
            self._batch.endpoint,
            BodyBounds.of_context(self._parts.engine.max_model_len, prompts),
            needs_model=not self._parts.settings.base_by_default,
        )

    async def _validate(self) -> bool:
        """Check all lines; False if the batch has ended by that."""
        errors = [self._error] if self._error is not None else []
        lines = self._lines
        if lines is not None:
            errors += await asyncio.to_thread(self._check().errors, lines)
        if errors or lines is None:
            await self._change(transitions.refused, errors=errors)
            self._log_end()
            return False
        await self._change(transitions.validated, total=len(lines))
        return True

    async def _answer(self, stack: ExitStack) -> None:
        """Answer the lines that have no answer, until all have one or something stops it."""
        lines, parts = self._lines, self._parts
        if lines is not None:
            objects = parts.files.objects
            scratch = stack.enter_context(scratch_file(parts.settings.cache_dir))
            # Lines whose answers are lost are answered again.
            done = await files.read_parts(
                objects, self._batch, await parts.store.parts(self._batch), scratch
            )
            queue = LineQueue(parts, self._app, self._batch, lines, set(done.rows), self._fail)
            self._queue = queue
            try:
                await self._drive(queue)
            finally:
                await queue.close()
            if self._stop == "lost":
                raise Conflict(f"the lease of {self._batch.id} has ended", code="lease_lost")
            await self._flush_all(queue)
        if self._stop == "released":
            await self._release()
            return
        if self._stop == "full":
            await self._wait_for_quota()
            return
        if self._stop == "limited":
            assert self._queue is not None
            await self._wait(
                transitions.NO_BUDGET,
                f"the requests of the batch's key wait: {self._queue.limit}",
                min(self._queue.limited_s, _LONGEST_LIMIT_S),
            )
            return
        ending: Ending = "completed"
        if self._stop in ("expired", "cancelled", "failed"):
            ending = self._stop
        errors = [self._error] if self._error is not None else []
        await self._change(transitions.frozen, ending=ending, errors=errors)

    async def _drive(self, queue: LineQueue) -> None:
        began = flushed = time.monotonic()
        while not self._stop and queue.open:
            if self._parts.shutdown.started:
                self._stop = "released"
            elif self._batch.state == "cancelling":
                self._stop = "cancelled"  # while no server had it
            elif time.time() >= self._batch.expires_at:
                self._stop = "expired"
            else:
                await queue.start_lines()
                await queue.wait(_TICK_S)
            if not queue.healthy and self._stop is None:
                # Answers of an engine that dies are none of their lines.
                self._stop = "released"
            if queue.limited_s and self._stop is None:
                # Others' batches have its place and its share meanwhile.
                self._stop = "limited"
            now = time.monotonic()
            due_s = _FLUSH_S + _FLUSH_SHARE * (now - began)
            full = len(queue.rows) >= _PART_ROWS or queue.bytes >= _PART_BYTES
            if queue.rows and (full or now - flushed >= due_s):
                flushed = now
                with contextlib.suppress(ApiError):
                    await self._flush(queue)
                    await self._look_for_place(queue.open)
        if self._stop in ("released", "full", "limited"):
            await queue.drain()

    async def _look_for_place(self, more: bool) -> None:
        """Let no further line begin if the tenant's quota does not have the answers' bytes.

        more: if some lines have no answer. Each batch looks at its own answers: several at a time
        may pass the quota once each.
        """
        with contextlib.suppress(ApiError):
            left = await self._parts.files.left(self._batch.tenant)
            full = left is not None and left <= self._batch.part_bytes
            if full and more and self._stop is None:
                self._stop = "full"

    async def _wait_for_quota(self) -> None:
        await self._wait(
            transitions.NO_PLACE,
            f"tenant {self._batch.tenant!r} has no place for further answers; delete files, or ask "
            "the operator for more",
            _NO_PLACE_S,
        )

    async def _wait(self, code: str, message: str, pause_s: float) -> None:
        """Give the batch back until then, with an error that its tenant sees."""
        said = BatchError(code=code, message=message[:1000])
        await self._change(transitions.noted, lease_ms=int(pause_s * 1000), error=said)
        logger.info("%s waits for %.0f s (%s).", self._batch.id, pause_s, code)

    async def _flush_all(self, queue: LineQueue) -> None:
        while queue.rows:
            try:
                await self._flush(queue)
            except Conflict:
                raise
            except ApiError as error:
                logger.warning("Answers of %s wait: %s.", self._batch.id, error)
                await asyncio.sleep(_AGAIN_S)
                if self._stop == "lost":
                    raise Conflict(str(error), code="lease_lost") from None

    async def _flush(self, queue: LineQueue) -> None:
        """Keep the rows that are there. Raises ApiError; they are kept later then."""
        name, rows = queue.part()
        try:
            part = await files.keep(self._parts.files.objects, self._batch, rows, name)
            await self._change(transitions.answered, part=part)
        except Conflict:
            self._stop = "lost"
            raise
        queue.kept(len(rows))
        self._parts.metrics.batch_lines.labels("failed").inc(part.failed)
        self._parts.metrics.batch_lines.labels("completed").inc(part.lines - part.failed)

    def _fail(self, error: BatchError) -> None:
        """End the batch, because its key may send no request any more."""
        if self._stop is None:
            self._stop, self._error = "failed", error

    async def _finish(self, stack: ExitStack) -> None:
        """Write the files of a batch that takes no further answers, and end it."""
        batch, parts = self._batch, self._parts
        since_s = time.time() - (batch.finalizing_at or 0)
        made = await written(parts, batch, self._lines, stack)
        if made.lost and since_s < _PARTS_S:
            raise BlobsDown(f"{made.lost} answers of {batch.id} cannot be read")
        files_made = {"output": made.completed > 0, "error": made.failed > 0}
        try:
            await publish(parts.files, batch, made)
        except PayloadTooLarge as error:
            if since_s < _GIVE_UP_S:
                await self._wait(transitions.NO_PLACE, str(error), _no_place_s(since_s))
                return
            # One of the two may have had a place.
            files_made = await kept(parts.files, batch)
        if made.unanswered > 0:
            parts.metrics.batch_lines.labels(batch.ending or "").inc(made.unanswered)
        try:
            await self._change(
                transitions.ended, **files_made, completed=made.completed, failed=made.failed
            )
        except Conflict:
            await withdraw(parts, batch)
            raise
        self._log_end()
        await files.remove_parts(parts.files.objects, parts.store, batch)

    def _log_end(self) -> None:
        batch = self._batch
        logger.info(
            "%s of tenant %s is %s: %d of %d lines answered, %d with an error.",
            *(batch.id, batch.tenant, batch.state, batch.completed, batch.total, batch.failed),
        )

    async def _watch(self) -> None:
        """Keep the lease, and see what its tenant and other servers do with the batch."""
        word = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                now = await self._parts.store.find(self._batch.id)
                if now is None or now.lease is None or now.lease.token != self._token:
                    self._stop = "lost"
                    return
                if now.state == "cancelling" and self._stop is None:
                    self._stop = "cancelled"
                if time.monotonic() - word >= _PROLONG_S:
                    await self._change(transitions.prolonged, lease_ms=int(LEASE_S * 1000))
                    word = time.monotonic()
            except (Conflict, NotFound):
                self._stop = "lost"
                return
            except ApiError as error:
                logger.info("The lease of %s was not prolonged: %s.", self._batch.id, error)

    async def _release(self) -> None:
        """Give the batch back, if that is possible."""
        crashed = self._queue is not None and not self._queue.healthy
        with contextlib.suppress(ApiError):
            await self._change(transitions.released, crashed=crashed)

    async def _change(self, make: Any, **options: Any) -> None:
        """Change the batch by a transition. Raises ApiError."""

        def wanted(batch: Batch, now_ms: int) -> Any:
            return make(batch, now_ms, token=self._token, **options)

        async with self._changed:
            self._batch, _ = await self._parts.store.change(self._batch.id, wanted)


def _no_place_s(since_s: float) -> float:
    """Pause of a batch whose files have had no place for so long: each attempt reads all of it."""
    return min(max(_NO_PLACE_S, since_s / 10), 10 * _NO_PLACE_S)
