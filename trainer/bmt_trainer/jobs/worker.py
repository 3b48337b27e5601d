"""The worker's loop: lease a job, train it in a process, report its steps, publish its mask.

One thread, which looks at the training and at the clock in turn. A job's folder has all that a
killed worker leaves: whoever leases the job next with the same folder goes on from its last
checkpoint, to the same mask; with another folder from the beginning, to the same mask too.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from bmt_trainer.errors import ConfigError, OutputError
from bmt_trainer.jobs.checkpoints import Checkpoints
from bmt_trainer.jobs.child import Child
from bmt_trainer.jobs.connection import (
    Connection,
    LeaseLost,
    NoRoom,
    Refused,
    TooLarge,
    Unreachable,
)
from bmt_trainer.jobs.job import MASK, TrainingJob
from bmt_trainer.jobs.metrics import Metrics, results_of
from bmt_trainer.jobs.settings import TrainingSettings, settings_of
from bmt_trainer.jobs.transfers import Stopped, Times, Transfers

_TICK_S = 0.2
# Metrics of one report, at most.
_METRICS = 500
# Time for which another process's folder is waited for.
_FOLDER_S = 30.0
_KEPT_S = 7 * 86400.0
# Longest rest after faults of this host, in which other workers take its jobs.
_FAULT_S = 60.0


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker. base: fingerprint of the model's weights; train: of every training.

    max_file_bytes: of a training file; once: end when no job waits.
    """

    base: str
    folder: Path
    train: TrainingSettings = field(default_factory=TrainingSettings)
    times: Times = field(default_factory=Times)
    max_file_bytes: int = 1 << 30
    once: bool = False


class Worker:
    """A worker of one server. say: shows a line."""

    def __init__(
        self, api: Connection, settings: WorkerSettings, say: Callable[[str], None]
    ) -> None:
        self._api, self._settings, self._say = api, settings, say
        self._times = settings.times
        self._transfers = Transfers(api, self._times, say, lambda: bool(self.signum))
        self.signum = 0
        # Of this host, one after the other.
        self._faults = 0

    def run(self) -> None:
        """Work until a signal; with `once`, until no job waits."""
        before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self.signum:
                # Others' rows, before there are more.
                self.remove_old()
                job = self.next()
                if job is not None:
                    self.work(job)
                elif self._settings.once:
                    return
                else:
                    self._transfers.sleep(self._times.poll_s)
        except Stopped:
            return
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _stop(self, signum: int, _frame: Any) -> None:
        self.signum = signum

    def next(self) -> TrainingJob | None:
        """The next job; None if none waits, or the server is away."""
        try:
            return self._api.lease(self._settings.base)
        except (LeaseLost, Unreachable) as error:
            self._say(f"{error}; trying again")
            self._transfers.sleep(self._times.poll_s)
            return None

    def work(self, job: TrainingJob) -> None:
        """Train a job, and end it or give it back. Raises ConfigError, Stopped."""
        self._say(f"{job.id}: {job.method}, for {job.model}")
        folder = self._settings.folder / job.id
        end = self._transfers.end
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("a") as lock:
                if self._locked(lock, job):
                    self._train(job, folder)
        except LeaseLost as error:
            self._say(f"{job.id}: {error}")
        except Refused as error:
            end(job, "failed", str(error))
        except NoRoom as error:
            end(job, "failed", f"the mask found no room on the server: {error}", "no_room")
        except TooLarge as error:
            self._say(f"{job.id}: {error}")
            self._crashed(job, str(error))
        except (ConfigError, Stopped):
            raise  # of the worker's key or address, or its end
        except (OSError, MemoryError) as error:
            self._say(f"{job.id}: {error!r}")
            # Without the names of its folders.
            self._crashed(job, getattr(error, "strerror", None) or type(error).__name__)
        except Exception as error:
            # A fault of this program's, which may be one of this job's: the worker goes on.
            self._say(f"{job.id}: {traceback.format_exc()}")
            self._crashed(job, type(error).__name__)

    def _locked(self, lock: TextIO, job: TrainingJob) -> bool:
        """True once this process has the job's folder; False if another one keeps it."""
        deadline = time.monotonic() + _FOLDER_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline or self.signum:
                    said = "another process has the folder of the job"
                    self._transfers.end(job, "released", said)
                    self._transfers.sleep(self._times.poll_s)
                    return False
                self._transfers.sleep(min(1.0, self._times.report_s))
                self._transfers.report(job)

    def _train(self, job: TrainingJob, folder: Path) -> None:
        mask, child = folder / MASK, None
        if not mask.exists() or (folder / f"{MASK}.run").exists():
            self._transfers.fetch(job, folder, self._settings.max_file_bytes)
            settings = self._transfers.meanwhile(job, lambda _: self._settings_of(job, folder))
            child = Child(job.method, folder, settings, job.step)
            try:
                code = self.watch(job, child, Checkpoints(self._api, job, folder, self._say))
            except (LeaseLost, ConfigError):
                child.stop()  # whoever has the folder next goes on from there
                raise
            except BaseException:
                child.kill()
                raise
            if code != 0:
                self._failed(job, child, code, folder)
                return
        self._keep_results(job, folder)
        tokens = child.trained_tokens if child is not None else None
        name = self._transfers.sent(job, lambda: self._api.publish(job, mask, tokens))
        self._faults = 0
        self._say(f"{job.id}: {name} is published")
        shutil.rmtree(folder, ignore_errors=True)

    def _keep_results(self, job: TrainingJob, folder: Path) -> None:
        """Send the file of metrics. Without it the job goes on: the mask is worth more."""
        if job.results or (results := results_of(folder)) is None:
            return

        def send() -> None:
            try:
                self._api.results(job, results)
            except NoRoom as error:
                self._transfers.report(job, said=f"The results file is not kept: {error}")
                raise Refused(str(error)) from None

        try:
            self._transfers.sent(job, send)
        except Refused as error:
            self._say(f"{job.id}: results: {error}")

    def _settings_of(self, job: TrainingJob, folder: Path) -> dict[str, Any]:
        """The settings of the job's command. Raises Refused: they are the job's fault."""
        try:
            return settings_of(job, folder, self._settings.train)
        except ConfigError as error:
            raise Refused(str(error)) from None

    def watch(self, job: TrainingJob, child: Child, checkpoints: Checkpoints) -> int:
        """Report the training's steps until it ends; its exit code. Raises LeaseLost, Stopped."""
        waiting: list[Metrics] = []
        reported = 0.0
        while (code := child.poll()) is None:
            new = child.new_steps()
            waiting += new
            if seen := child.seen_steps():
                self._publish(job, child, checkpoints, seen)
            if time.monotonic() - reported >= self._times.report_s:
                if self._transfers.report(job, waiting[:_METRICS], child.steps):
                    del waiting[:_METRICS]
                reported = time.monotonic()
            if self.signum:
                child.stop()
                raise self._transfers.release(job)
            time.sleep(_TICK_S)
        waiting += child.new_steps()
        if code == 0:
            waiting += child.last_steps()
        while waiting and self._transfers.report(job, waiting[:_METRICS], child.steps):
            del waiting[:_METRICS]
        return code

    def _publish(
        self, job: TrainingJob, child: Child, checkpoints: Checkpoints, seen: list[Metrics]
    ) -> None:
        # A mask may take longer to arrive than the lease holds.
        self._transfers.meanwhile(job, lambda _: checkpoints.publish(seen), child.stop)

    def _failed(self, job: TrainingJob, child: Child, code: int, folder: Path) -> None:
        """End a job whose training did not succeed, or give it back."""
        fault = child.fault()
        if code in (1, 2) and fault is not None and fault.of_the_job(self._settings.train.train):
            self._transfers.end(job, "failed", fault.message)
            self._faults = 0
            shutil.rmtree(folder, ignore_errors=True)
        else:
            if fault is not None and fault.kind == "ResumeError":
                # Left by a worker with other flags: the next one starts over.
                shutil.rmtree(folder, ignore_errors=True)
            self._crashed(job, child.ending(code) if fault is None else fault.message)
        said = fault.message if fault is not None else "see log.txt in its folder"
        self._say(f"{job.id}: exit code {code}: {said}")

    def _crashed(self, job: TrainingJob, reason: str) -> None:
        """Give a job back for a fault of this host, and leave jobs to others for a while."""
        said = f"A worker could not train it: {reason}; it is tried again"
        self._transfers.end(job, "crashed", said)
        self._faults += 1
        self._transfers.sleep(min(_FAULT_S, self._times.poll_s * 2**self._faults))

    def remove_old(self) -> None:
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
