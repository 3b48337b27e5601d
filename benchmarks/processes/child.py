"""A child process that answers JSON lines: one question on its stdin, one answer on a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.environment import ROOT, engine_environment

STOP_S = 30


class ChildError(RuntimeError):
    """A child ended, failed or did not answer in time; the message shows the end of its log."""


class Child:
    """`python -m MODULE ARGUMENTS FD`, its output in `log`. `ask` and `answer` raise ChildError."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, str(write)],
                cwd=ROOT,
                env=engine_environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                start_new_session=True,
            )
        os.close(write)
        self._answers = os.fdopen(read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one question and wait for its answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended: `answer` says so, with its log
            self._process.stdin.write((json.dumps(question) + "\n").encode())
            self._process.stdin.flush()
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next answer."""
        deadline = time.monotonic() + timeout_s
        while not select.select([self._answers], [], [], 1.0)[0]:
            if time.monotonic() > deadline:
                raise ChildError(self._failure(f"no answer in {timeout_s:.0f} s"))
        line = self._answers.readline()
        # End of file: whoever held the pipe's other end is gone.
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise ChildError(self._failure(answer["error"]))
        return dict(answer)

    def stop(self) -> None:
        """End it and all that it started."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        # The session's leader may be gone while what it started lives on.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()

    def _failure(self, why: str) -> str:
        return f"{self.name}: {why}; its log ends:\n{self._log.read_text(errors='replace')[-3000:]}"
