"""A worker next to the server: started once the server answers, and again whenever it ends.

In a thread of the process that the operator started, which is the API process, or the launcher of
several: there is one worker, however many of them there are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from bmt_server.errors import ApiError
from bmt_server.ipc.stats_files import TrainingStats
from bmt_server.training.keys import PROLONG_S, WorkerKeys
from bmt_server.training.plan import Plan

_PYTHON = (sys.executable, "-P", "-m")
_LAUNCH = (*_PYTHON, "bmt_server.training.launch")
_READY = (*_PYTHON, "bmt_server.training.ready")
# Pauses before a worker is started again, doubled each time; one that ran for long begins over.
_FIRST_S, _LONGEST_S, _LONG_S = 1.0, 300.0, 600.0
# Time in which a worker writes its training's checkpoint and ends.
_END_S = 15.0
_LINE_BYTES = 2000


class Supervisor:
    """Keeps a worker running from `__enter__` to `__exit__`.

    stats_dir: for its state, which `/metrics` has; say: shows a line; first_s: the first pause.
    """

    def __init__(
        self,
        plan: Plan,
        keys: WorkerKeys,
        stats_dir: str,
        say: Callable[[str], None],
        first_s: float = _FIRST_S,
    ) -> None:
        self._plan, self._keys = plan, keys
        self._say: Callable[[str], None] = lambda line: say(f"train: {line}")
        self._stats_dir, self._first_s = stats_dir, first_s
        self._stats = TrainingStats()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="bmt-train", daemon=True)

    def __enter__(self) -> Supervisor:
        self._write(up=False)
        plan = self._plan
        # In this thread: a child ends with the thread that started it.
        self._start([*_READY, plan.host.strip("[]"), str(plan.port)], dict(plan.environment))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with self._lock:
                self._ending.set()
                if self._process is not None:
                    self._process.send_signal(signum)  # none to one that has ended
            self._thread.join(_END_S)

    def _run(self) -> None:
        assert self._process is not None
        self._process.communicate()
        pause = self._first_s
        while not self._ending.is_set():
            started = time.monotonic()
            ended = self._work()
            if self._ending.is_set():
                return
            if time.monotonic() - started > _LONG_S:
                pause = self._first_s
            self._say(f"{ended}; it is started again in {pause:g} s")
            self._ending.wait(pause)
            pause = min(2 * pause, _LONGEST_S)

    def _work(self) -> str:
        """Run one worker until it ends; how it did."""
        try:
            key, key_id = self._keys.make()
        except ApiError as error:
            return f"there is no key for the worker ({error})"
        try:
            # Not on the command line, which all users of the host may read.
            process = self._start(
                self._plan.command, {**self._plan.environment, "BMT_API_KEY": key}
            )
            return self._watch(process, key_id) if process is not None else "the server ends"
        except OSError as error:
            return f"the worker cannot be started ({error.strerror})"
        finally:
            try:
                self._keys.end(key_id)
            except ApiError as error:
                self._say(f"the worker's key {key_id} is not revoked, and expires ({error})")

    def _watch(self, process: subprocess.Popen[bytes], key_id: str) -> str:
        self._write(up=True)
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        while True:
            try:
                code = process.wait(PROLONG_S)
                break
            except subprocess.TimeoutExpired:
                try:
                    self._keys.prolong(key_id)
                except ApiError as error:
                    self._say(f"the worker's key is not prolonged ({error})")
        reader.join(1.0)
        self._write(up=False)
        return "the worker ended " + (f"by signal {-code}" if code < 0 else f"with code {code}")

    def _start(
        self, command: Sequence[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """A child of the lowest priority; none any more once the server ends."""
        with self._lock:
            if self._ending.is_set():
                return None
            self._process = subprocess.Popen(
                [*_LAUNCH, str(os.getpid()), *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Ctrl-C of a terminal is the server's, which ends its children itself.
                start_new_session=True,
            )
            return self._process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Show the worker's lines as the server's."""
        assert process.stdout is not None
        with process.stdout as lines:
            while line := lines.readline(_LINE_BYTES):
                self._say(line.decode(errors="replace").rstrip())

    def _write(self, *, up: bool) -> None:
        self._stats.up = int(up)
        self._stats.starts += up
        try:
            self._stats.write(self._stats_dir, os.getpid())
        except OSError as error:
            self._say(f"the worker's state is not in /metrics ({error.strerror})")
