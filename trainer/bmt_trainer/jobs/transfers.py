"""Requests about a job that keep its lease meanwhile, and wait for a server that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bmt_trainer.errors import TrainerError
from bmt_trainer.jobs.background import start
from bmt_trainer.jobs.connection import Connection, LeaseLost, NoRoom, Refused, Unreachable
from bmt_trainer.jobs.job import DATA, VALIDATION, TrainingJob
from bmt_trainer.jobs.metrics import Metrics
from bmt_trainer.jobs.rows import fetch
from bmt_trainer.waiting import result_of

# Downloads of a file from a server that answers everything else.
_DOWNLOADS = 5
# Steps in which work of a thread is looked at, and the time that is left to it after its lease.
_LOOK_S, _LAST_S = 0.05, 30.0
_TICK_S = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """poll_s: between questions for a job, and tries; report_s: between words to the server, well
    below the lease; room_s: for which a server without room for a mask is waited for."""

    poll_s: float = 5.0
    report_s: float = 10.0
    room_s: float = 3600.0


class Stopped(TrainerError):
    """A signal that ends the worker."""


class Transfers:
    """Requests of one worker. say: shows a line; stopped: true after a signal."""

    def __init__(
        self,
        api: Connection,
        times: Times,
        say: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._api, self._times, self._say, self._stopped = api, times, say, stopped

    def report(
        self,
        job: TrainingJob,
        metrics: list[Metrics] | None = None,
        steps: int | None = None,
        said: str = "",
    ) -> bool:
        """Prolong the lease; False if the server is away: the training goes on.

        said: an event of the job. Raises LeaseLost.
        """
        try:
            self._api.report(job, metrics or [], steps=steps, said=said)
        except Unreachable as error:
            self._say(f"{job.id}: {error}")
            return False
        except Refused as error:
            # A training is worth more than its curve, as one with figures that an older server
            # does not know.
            self._say(f"{job.id}: a report is left out: {error}")
            if metrics or said:
                return self.report(job)
        return True

    def end(
        self, job: TrainingJob, outcome: str, reason: str, code: str = "training_failed"
    ) -> None:
        """Say how the job ended; a server that is away, or refuses it, has its lease run out."""
        try:
            self._api.end(job, outcome, reason, code)
        except (LeaseLost, Unreachable, Refused) as error:
            self._say(f"{job.id}: {error}")

    def release(self, job: TrainingJob) -> Stopped:
        """Give a job back, for the worker ends; the error that says so."""
        self.end(job, "released", "The worker was stopped; the job waits for another one")
        return Stopped("stopped")

    def meanwhile(
        self,
        job: TrainingJob,
        work: Callable[[Callable[[], bool]], T],
        ending: Callable[[], None] = lambda: None,
    ) -> T:
        """The result of `work`, while the job is reported. Raises LeaseLost, Stopped, its errors.

        work: gets a function that is true once its result is not wanted any more; ending: called
        before the job is given back, for a signal.
        """
        left = threading.Event()
        future, reported = start(lambda: work(left.is_set)), time.monotonic()
        try:
            while not future.done():
                if time.monotonic() - reported >= self._times.report_s:
                    self.report(job)
                    reported = time.monotonic()
                if self._stopped():
                    left.set()
                    ending()
                    raise self.release(job)
                time.sleep(_LOOK_S)
        except LeaseLost:
            left.set()
            # The work may have ended the job itself, a moment before.
            deadline = time.monotonic() + _LAST_S
            while not future.done() and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            if not future.done() or future.exception() is not None:
                raise
        finally:
            left.set()
        return result_of(future)

    def sent(self, job: TrainingJob, send: Callable[[], T]) -> T:
        """The result of `send`, which is called again while the server is away.

        Raises NoRoom if it has had no room for what is sent for too long.
        """
        full_since: float | None = None
        while True:
            try:
                return self.meanwhile(job, lambda _: send())
            except Unreachable as error:
                self._say(f"{job.id}: {error}; trying again")
                said = ""
                if isinstance(error, NoRoom):
                    if full_since is None:
                        full_since = time.monotonic()
                        said = f"The job is trained and waits for room on the server: {error}"
                    elif time.monotonic() - full_since > self._times.room_s:
                        raise
                self.report(job, said=said)
                self.sleep(self._times.poll_s)
                if self._stopped():
                    raise self.release(job) from None

    def fetch(self, job: TrainingJob, folder: Path, most: int) -> None:
        """The job's rows, and those that it is validated on. most: bytes of a file."""
        self._fetch(job, folder / DATA, "training", most)
        if job.validated:
            self._fetch(job, folder / VALIDATION, "validation", most)

    def _fetch(self, job: TrainingJob, target: Path, which: str, most: int) -> None:
        """One of the job's files. Raises Refused if it cannot be read while all else can."""
        failures = 0
        while not target.exists():
            try:
                self.meanwhile(
                    job, lambda stopped: fetch(self._api, job, target, most, stopped, which)
                )
            except Unreachable as error:
                self._say(f"{job.id}: {error}; trying again")
                # A server that is away fails no job, however long; one that answers, and has no
                # bytes, would keep this worker forever.
                failures += self.report(job)
                if failures == _DOWNLOADS:
                    raise Refused(
                        f"the {which} file cannot be read, in {failures} tries; upload it again"
                    ) from None
                self.sleep(self._times.poll_s)
                if self._stopped():
                    raise self.release(job) from None

    def sleep(self, seconds: float) -> None:
        """Sleep, but not on after a signal."""
        deadline = time.monotonic() + seconds
        while not self._stopped() and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _TICK_S))
