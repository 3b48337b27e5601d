"""The worker's loop: lease a job, train it in a process, report its steps, publish its mask.

One thread, which looks at the training and at the clock in turn. A job's folder has all that a
killed worker leaves: whoever leases the job next with the same folder goes on from its last
checkpoint, to the same mask; with another folder from the beginning, to the same mask too.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from bmt_trainer.errors import ConfigError, OutputError, TrainerError
from bmt_trainer.jobs.background import start
from bmt_trainer.jobs.checkpoints import Checkpoints
from bmt_trainer.jobs.child import Child
from bmt_trainer.jobs.connection import Connection, LeaseLost, Refused, TooLarge, Unreachable
from bmt_trainer.jobs.job import DATA, MASK, VALIDATION, TrainingJob
from bmt_trainer.jobs.metrics import Metrics, results_of
from bmt_trainer.jobs.rows import fetch
from bmt_trainer.jobs.settings import TrainingSettings, settings_of
from bmt_trainer.waiting import result_of

_TICK_S = 0.2
# Metrics of one report, at most.
_METRICS = 500
# Time for which another process's folder is waited for.
_FOLDER_S = 30.0
# Downloads of a file from a server that answers everything else.
_DOWNLOADS = 5
_KEPT_S = 7 * 86400.0
# Steps in which work of a thread is looked at, and the time that is left to it after its lease.
_LOOK_S, _LAST_S = 0.05, 30.0
# Longest rest after faults of this host, in which other workers take its jobs.
_FAULT_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker. base: fingerprint of the model's weights; train: of every training.

    poll_s: time between questions for a job; report_s: between words to the server, well below the
    lease; max_file_bytes: of a training file; once: end when no job waits.
    """

    base: str
    folder: Path
    train: TrainingSettings = field(default_factory=TrainingSettings)
    poll_s: float = 5.0
    report_s: float = 10.0
    max_file_bytes: int = 1 << 30
    once: bool = False


class Stopped(TrainerError):
    """A signal that ends the worker."""


class Worker:
    """A worker of one server. say: shows a line."""

    def __init__(
        self, api: Connection, settings: WorkerSettings, say: Callable[[str], None]
    ) -> None:
        self._api, self._settings, self._say = api, settings, say
        self.signum = 0
        # Of this host, one after the other.
        self._faults = 0

    def run(self) -> None:
        """Work until a signal; with `once`, until no job waits."""
        before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self.signum:
                job = self._next()
                if job is not None:
                    self._work(job)
                elif self._settings.once:
                    return
                else:
                    self._remove_old()
                    self._sleep(self._settings.poll_s)
        except Stopped:
            return
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _stop(self, signum: int, _frame: Any) -> None:
        self.signum = signum

    def _next(self) -> TrainingJob | None:
        try:
            return self._api.lease(self._settings.base)
        except (LeaseLost, Unreachable) as error:
            self._say(f"{error}; trying again")
            self._sleep(self._settings.poll_s)
            return None

    def _work(self, job: TrainingJob) -> None:
        self._say(f"{job.id}: {job.method}, for {job.model}")
        folder = self._settings.folder / job.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("a") as lock:
                if self._locked(lock, job):
                    self._train(job, folder)
        except LeaseLost as error:
            self._say(f"{job.id}: {error}")
        except Refused as error:
            self._end(job, "failed", str(error))
        except TooLarge as error:
            self._say(f"{job.id}: {error}")
            self._crashed(job, str(error))
        except (OSError, MemoryError) as error:
            self._say(f"{job.id}: {error!r}")
            # Without the names of its folders.
            self._crashed(job, getattr(error, "strerror", None) or type(error).__name__)

    def _locked(self, lock: TextIO, job: TrainingJob) -> bool:
        """True once this process has the job's folder; False if another one keeps it."""
        deadline = time.monotonic() + _FOLDER_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline or self.signum:
                    self._end(job, "released", "another process has the folder of the job")
                    self._sleep(self._settings.poll_s)
                    return False
                self._sleep(min(1.0, self._settings.report_s))
                self._report(job)

    def _train(self, job: TrainingJob, folder: Path) -> None:
        mask, child = folder / MASK, None
        if not mask.exists() or (folder / f"{MASK}.run").exists():
            self._fetch(job, folder)
            settings = self._meanwhile(job, lambda _: self._settings_of(job, folder))
            child = Child(job.method, folder, settings, job.step)
            try:
                code = self._watch(job, child, Checkpoints(self._api, job, folder, self._say))
            except LeaseLost:
                child.stop()  # a job that was paused goes on from there
                raise
            except BaseException:
                child.kill()
                raise
            if code != 0 and not self._failed(job, child, code, folder):
                return
        if not job.results and (results := results_of(folder)) is not None:
            try:
                self._sent(job, lambda: self._api.results(job, results))
            except Refused as error:  # the mask is there, and is worth more
                self._say(f"{job.id}: results: {error}")
        tokens = child.trained_tokens if child is not None else None
        name = self._sent(job, lambda: self._api.publish(job, mask, tokens))
        self._faults = 0
        self._say(f"{job.id}: {name} is published")
        shutil.rmtree(folder, ignore_errors=True)

    def _settings_of(self, job: TrainingJob, folder: Path) -> dict[str, Any]:
        """The settings of the job's command. Raises Refused: they are the job's fault."""
        try:
            return settings_of(job, folder, self._settings.train)
        except ConfigError as error:
            raise Refused(str(error)) from None

    def _fetch(self, job: TrainingJob, folder: Path) -> None:
        """The job's rows, and those that it is validated on."""
        self._fetch_rows(job, folder / DATA, "training")
        if job.validated:
            self._fetch_rows(job, folder / VALIDATION, "validation")

    def _fetch_rows(self, job: TrainingJob, target: Path, which: str) -> None:
        """One of the job's files. Raises Refused if it cannot be read while all else can."""
        failures = 0
        while not target.exists():
            try:
                self._meanwhile(
                    job,
                    lambda stopped: fetch(
                        self._api, job, target, self._settings.max_file_bytes, stopped, which
                    ),
                )
            except Unreachable as error:
                self._say(f"{job.id}: {error}; trying again")
                # A server that is away fails no job, however long; one that answers, and has no
                # bytes, would keep this worker forever.
                failures += self._report(job)
                if failures == _DOWNLOADS:
                    raise Refused(
                        f"the {which} file cannot be read, in {failures} tries; upload it again"
                    ) from None
                self._sleep(self._settings.poll_s)
                if self.signum:
                    self._stop_work(job)

    def _meanwhile(
        self,
        job: TrainingJob,
        work: Callable[[Callable[[], bool]], T],
        child: Child | None = None,
    ) -> T:
        """The result of `work`, while the job is reported. Raises LeaseLost, Stopped, its errors.

        work: gets a function that is true once its result is not wanted any more; child: a training
        that runs as well.
        """
        left = threading.Event()
        future, reported = start(lambda: work(left.is_set)), time.monotonic()
        try:
            while not future.done():
                if time.monotonic() - reported >= self._settings.report_s:
                    self._report(job)
                    reported = time.monotonic()
                if self.signum:
                    left.set()
                    self._stop_work(job, child)
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

    def _watch(self, job: TrainingJob, child: Child, checkpoints: Checkpoints) -> int:
        """Report the training's steps until it ends; its exit code. Raises LeaseLost, Stopped."""
        waiting: list[Metrics] = []
        reported = 0.0
        while (code := child.poll()) is None:
            new = child.new_steps()
            waiting += new
            if new:
                self._publish(job, child, checkpoints, new)
            if time.monotonic() - reported >= self._settings.report_s:
                if self._report(job, waiting[:_METRICS], child.steps):
                    del waiting[:_METRICS]
                reported = time.monotonic()
            if self.signum:
                self._stop_work(job, child)
            time.sleep(_TICK_S)
        waiting += child.new_steps()
        if code == 0:
            waiting += child.last_steps()
        while waiting and self._report(job, waiting[:_METRICS], child.steps):
            del waiting[:_METRICS]
        return code

    def _publish(
        self, job: TrainingJob, child: Child, checkpoints: Checkpoints, new: list[Metrics]
    ) -> None:
        # A mask may take longer to arrive than the lease holds.
        self._meanwhile(job, lambda _: checkpoints.publish(new), child)

    def _report(
        self,
        job: TrainingJob,
        metrics: list[Metrics] | None = None,
        steps: int | None = None,
    ) -> bool:
        """False if the server is away: the training goes on, and the metrics wait."""
        try:
            self._api.report(job, metrics or [], steps=steps)
        except Unreachable as error:
            self._say(f"{job.id}: {error}")
            return False
        return True

    def _stop_work(self, job: TrainingJob, child: Child | None = None) -> NoReturn:
        """Let another worker go on from the training's checkpoint. Raises Stopped."""
        if child is not None:
            child.stop()
        self._end(job, "released", "The worker was stopped; the job waits for another one")
        raise Stopped("stopped")

    def _failed(self, job: TrainingJob, child: Child, code: int, folder: Path) -> bool:
        """End a job whose training did not succeed. Returns False."""
        fault = child.fault()
        if code in (1, 2) and fault is not None and fault.of_the_job(self._settings.train.train):
            self._end(job, "failed", fault.message)
            self._faults = 0
            shutil.rmtree(folder, ignore_errors=True)
        else:
            if fault is not None and fault.kind == "ResumeError":
                # Left by a worker with other flags: the next one starts over.
                shutil.rmtree(folder, ignore_errors=True)
            self._crashed(job, child.ending(code) if fault is None else fault.message)
        said = fault.message if fault is not None else "see log.txt in its folder"
        self._say(f"{job.id}: exit code {code}: {said}")
        return False

    def _crashed(self, job: TrainingJob, reason: str) -> None:
        """Give a job back for a fault of this host, and leave jobs to others for a while."""
        self._end(job, "crashed", f"A worker could not train it: {reason}; it is tried again")
        self._faults += 1
        self._sleep(min(_FAULT_S, self._settings.poll_s * 2**self._faults))

    def _end(self, job: TrainingJob, outcome: str, reason: str) -> None:
        """Say how the job ended; a server that is away has its lease run out."""
        try:
            self._api.end(job, outcome, reason)
        except (LeaseLost, Unreachable) as error:
            self._say(f"{job.id}: {error}")

    def _sent(self, job: TrainingJob, send: Callable[[], T]) -> T:
        """The result of `send`, which is called again while the server is away."""
        while True:
            try:
                return self._meanwhile(job, lambda _: send())
            except Unreachable as error:
                self._say(f"{error}; trying again")
                self._sleep(self._settings.poll_s)
                if self.signum:
                    raise Stopped("stopped") from None
                self._report(job)

    def _sleep(self, seconds: float) -> None:
        """Sleep, but not on after a signal."""
        deadline = time.monotonic() + seconds
        while not self.signum and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _TICK_S))

    def _remove_old(self) -> None:
        """Remove folders of jobs that ended elsewhere, a week after they were used last."""
        for folder in self._settings.folder.glob("ftjob-*"):
            try:
                if folder.stat().st_mtime < time.time() - _KEPT_S:
                    # A training longer than that, of another worker, does not touch its folder.
                    with (folder / "lock").open("a") as lock:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                continue


def work_folder(folder: Path) -> Path:
    """The folder of a worker's jobs, for its user alone: it has training data.

    Raises OutputError.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"work folder: {folder} cannot be made ({error.strerror})") from None
    return folder.resolve()
