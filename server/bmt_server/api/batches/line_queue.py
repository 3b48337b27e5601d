"""Lines of a batch that wait, run and have an answer that is not kept yet."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial

import msgspec

from bmt_server.api import request_limits
from bmt_server.api.asgi import App
from bmt_server.api.batches import files
from bmt_server.api.batches.answer import LINE_PRIORITY, Answer, answered_row, ask, request_id
from bmt_server.api.batches.lines import Lines
from bmt_server.api.batches.parts import Parts
from bmt_server.registry.batches.record import Batch, BatchError

logger = logging.getLogger("vllm.bmt_server")

# Attempts of a line whose answer is a fault of this server, and the time in which it may recover.
_TRIES, _RECOVER_S = 3, 3600.0
_LONGEST_PAUSE_S = 60.0
_SHORTEST_PAUSE_S = 0.2
# Pause of a line whose answer this process could not take.
_FAULT_S = 2.0
# Answers that wait for their part: beyond, no line begins.
_MOST_BYTES = 16 << 20
_LEAVE_S, _LOOK_S = 5.0, 0.1
# Of the newest line in the average time of lines.
_WEIGHT = 0.2
# Lines from here on are parsed in a thread: other requests have their turn meanwhile.
_LARGE_BYTES = 256 << 10
_MOST_SEQUENCES = request_limits.MAX_PROMPTS * 64


@dataclass(frozen=True, slots=True)
class _Next:
    """A line that may begin. data: the body of its request, JSON."""

    index: int
    custom_id: str
    data: bytes
    sequences: int


class LineQueue:
    """Lines of one run. done: indexes of lines that have their answers.

    fail: called if the batch's key may send no request any more. rows: answers that are not kept;
    bytes: theirs. healthy: False once the engine was seen to fail. limited_s: once a limit of the
    key or the tenant asked for a long pause, which `limit` words; 0 before.
    """

    def __init__(
        self,
        parts: Parts,
        app: App,
        batch: Batch,
        lines: Lines,
        done: Set[int],
        fail: Callable[[BatchError], None],
    ) -> None:
        self._parts, self._app, self._batch = parts, app, batch
        self._lines, self._fail = lines, fail
        self._todo = deque(index for index in range(len(lines)) if index not in done)
        self._later: list[tuple[float, int]] = []  # time and index of lines to be tried again
        self._running: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()
        # First attempt and number of attempts of lines that had none of their own answers.
        self._tried: dict[int, tuple[float, int]] = {}
        self._paused_until = 0.0
        self._pause_s = 0.0
        # Time that lines take, a moving average, and when the last one began.
        self._line_s, self._began = 0.0, 0.0
        self._head: _Next | None = None
        self._schema = parts.schemas.get(batch.endpoint)
        concurrency = parts.settings.key_concurrency
        # The rest of its places is for the key's live requests.
        self._most = max(1, concurrency // 2) if concurrency else 0
        self.rows: list[files.Row] = []
        self.bytes = 0
        self.healthy = True
        self.limited_s, self.limit = 0.0, ""
        self._part: tuple[str, int] | None = None

    @property
    def open(self) -> bool:
        """True while lines have no answer."""
        return bool(self._todo or self._later or self._running)

    async def start_lines(self) -> None:
        """Start as many lines as there is room for."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._todo.appendleft(heapq.heappop(self._later)[1])
            self._head = None
        if now < self._paused_until or self.bytes > _MOST_BYTES or self._left.is_set():
            return
        while self._todo and not self._left.is_set():
            head = self._head
            if head is None or head.index != self._todo[0]:
                index = self._todo[0]
                if self._lines.sizes[index] < _LARGE_BYTES:
                    self._head = self._parsed(index)
                else:
                    self._head = await asyncio.to_thread(self._parsed, index)
                # Another line may be the next one by now.
                continue
            now = time.monotonic()
            if now < self._began + self._parts.room.pause_s(self._line_s):
                return
            if not self._parts.room.fits(self._batch.id, head.sequences, self._most):
                return
            self._began = now
            self._todo.popleft()
            self._head = None
            # Begins here, and not with the task: the next line counts it.
            self._parts.room.take(self._batch.id, head.sequences)
            task = asyncio.create_task(self._run(head), name="bmt-batch-line")
            self._running.add(task)
            task.add_done_callback(partial(self._ended, head.index, head.sequences, now))

    async def wait(self, within_s: float) -> None:
        """Return when a line has ended, or after that time."""
        if self._running:
            await asyncio.wait(self._running, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(within_s)

    async def drain(self) -> None:
        """Wait for the lines that run, unless they are left."""
        while self._running and not self._left.is_set():
            await asyncio.wait(self._running, timeout=_LOOK_S)

    def leave(self) -> None:
        """Let the lines that run end, without an answer."""
        self._left.set()

    async def close(self) -> None:
        """End the lines that run; they have no answers."""
        self._left.set()
        if self._running:
            await asyncio.wait(self._running, timeout=_LEAVE_S)
        for task in list(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    def part(self) -> tuple[str, list[files.Row]]:
        """Name and rows of the next part; the same again until they are kept."""
        if self._part is None:
            self._part = (files.new_name(), len(self.rows))
        name, count = self._part
        return name, self.rows[:count]

    def kept(self, count: int) -> None:
        """Forget the first rows, which are kept."""
        self._part = None
        self.rows = self.rows[count:]
        self.bytes = sum(len(row.text) for row in self.rows)

    def _ended(self, index: int, sequences: int, began: float, task: asyncio.Task[None]) -> None:
        took_s = time.monotonic() - began
        self._line_s += _WEIGHT * (took_s - self._line_s) if self._line_s else took_s
        self._parts.room.give(self._batch.id, sequences)
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # As of the disk that has the input: the line has no answer yet, and is not left out.
            logger.error("Line %d of %s waits: %s.", index, self._batch.id, error)
            heapq.heappush(self._later, (time.monotonic() + _FAULT_S, index))

    def _parsed(self, index: int) -> _Next:
        custom_id, body = self._lines.request(index)
        if self._schema is not None and "priority" in self._schema.fields:
            given = body.get("priority")
            # Another type is for the schema to refuse.
            if given is None or (isinstance(given, (int, float, str)) and _is_below(given)):
                body["priority"] = LINE_PRIORITY
        sequences = 1
        # The body is checked when it is sent.
        with contextlib.suppress(Exception):
            sequences = min(request_limits.count_sequences(body), _MOST_SEQUENCES)
        return _Next(index, custom_id, msgspec.json.encode(body), sequences)

    async def _run(self, line: _Next) -> None:
        index = line.index
        try:
            answer = await ask(
                self._app, self._batch, line.data, request_id(self._batch, index), self._left
            )
        except Exception:
            logger.exception("Line %d of %s failed.", index, self._batch.id)
            answer = Answer(500, {}, b"")
        if self._left.is_set():
            return
        if answer.status in (401, 403):
            self._todo.appendleft(index)
            said = f"the key of the batch may not send its requests: {answer.message}"
            self._fail(BatchError(code=answer.code[:64], message=said[:1000]))
        elif answer.status == 429 or answer.code in ("queue_full", "stopping"):
            self._todo.appendleft(index)
            if answer.status == 429 and answer.retry_after_s > _LONGEST_PAUSE_S:
                self.limited_s, self.limit = answer.retry_after_s, answer.message
            self._pause(answer.retry_after_s if answer.status == 429 else 0.0)
        elif answer.status >= 500 and await self._again(index, answer):
            return
        else:
            self._pause_s = 0.0
            self._tried.pop(index, None)
            text = answered_row(self._batch, index, line.custom_id, answer)
            self.rows.append(files.Row(index, answer.ok, text))
            self.bytes += len(text)

    def _pause(self, asked_s: float) -> None:
        """Let no line begin for a while: limits are the key's, and so are its next requests."""
        if time.monotonic() < self._paused_until:
            return  # of one that began before the pause
        self._pause_s = min(max(2 * self._pause_s, asked_s, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
        self._paused_until = time.monotonic() + self._pause_s

    async def _again(self, index: int, answer: Answer) -> bool:
        """True if a line whose answer is the server's fault is tried again, later."""
        if not await self._parts.engine.healthy():
            self.healthy = False
            self._todo.appendleft(index)
            return True
        since, tries = self._tried.get(index, (time.monotonic(), 0))
        self._tried[index] = since, tries + 1
        recovers = answer.status == 503 and time.monotonic() - since < _RECOVER_S
        if tries + 1 >= _TRIES and not recovers:
            return False
        after_s = max(answer.retry_after_s, min(2.0**tries, _LONGEST_PAUSE_S))
        heapq.heappush(self._later, (time.monotonic() + after_s, index))
        return True


def _is_below(priority: float | str) -> bool:
    """True for a priority before that of lines, also as the text of a number."""
    try:
        return float(priority) < LINE_PRIORITY
    except ValueError:
        return False
