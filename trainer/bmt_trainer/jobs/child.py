"""The training of a job, as a process of its own: `bmt-train` with a file of settings.

A process, so that a training that is killed for its memory ends no worker, and so that the memory
of one job is back before the next. It ends with its worker, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmt_trainer.errors import ERROR_FILE
from bmt_trainer.jobs.job import COMMANDS
from bmt_trainer.jobs.metrics import Metrics, metrics_of, validations_of

_PR_SET_PDEATHSIG = 1
_STEPS, _ERROR = "steps.jsonl", "error.json"
# Time in which a training ends after it was asked to.
_GRACE_S = 60.0
_SAID_BYTES = 16 << 10


# Errors of the trainer that another worker would meet as well: those of rows and of numbers.
_OF_THE_JOB = ("ConfigError", "DataError", "NonFinite", "EmptyMask", "RewardError")


@dataclass(frozen=True)
class Fault:
    """The error that ended a training. kind: its class."""

    kind: str
    message: str

    def of_the_job(self, settings: Mapping[str, Any]) -> bool:
        """False if it is of the worker's host. settings: the worker's own."""
        return self.kind in _OF_THE_JOB and self.message.partition(":")[0] not in settings


class Child:
    """A training that runs in `folder`. settings: of the command; step: the last one reported."""

    def __init__(
        self, method: str, folder: Path, settings: Mapping[str, Any], step: int = 0
    ) -> None:
        self._folder, self._log = folder, folder / "log.txt"
        self._model = str(settings.get("model", ""))
        self._last, self._seen = step, list[Metrics]()
        self.steps: int | None = None
        self.trained_tokens: int | None = None
        self._steps_file: Any = None
        self._partial = ""
        file = folder / "settings.yaml"
        file.write_text(json.dumps(settings))  # which is YAML, too
        # -P: the folder has a tenant's data, and is no place of modules.
        command = [sys.executable, "-P", "-m", "bmt_trainer", COMMANDS[method]]
        self._said_from = self._log.stat().st_size if self._log.exists() else 0
        (folder / _ERROR).unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--config", file.name],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C of a terminal is the worker's, which ends this process in its own time. No
                # session, for a new one has the full share of the processors (sched(7), autogroup),
                # however low the worker's priority is.
                process_group=0,
                env={**os.environ, ERROR_FILE: _ERROR},
                preexec_fn=_end_with(os.getpid()),
            )

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it with a checkpoint, or without one if it takes too long."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, and wait until it has."""
        self._process.kill()
        self._process.wait()

    def new_steps(self) -> list[Metrics]:
        """Metrics of the steps since the last call."""
        if self._steps_file is None:
            try:
                self._steps_file = (self._folder / "mask.bmt.run" / _STEPS).open()
            except OSError:
                return []
        self._partial += self._steps_file.read()
        *lines, self._partial = self._partial.split("\n")
        return self._read(map(_parsed, lines))

    def seen_steps(self) -> list[Metrics]:
        """Metrics of all steps that were read since the last call, those reported before too."""
        seen, self._seen = self._seen, []
        return seen

    def last_steps(self) -> list[Metrics]:
        """Metrics of the steps that `new_steps` has not given, of a training that has ended."""
        try:
            history = json.loads((self._folder / "mask.bmt.history.json").read_text())
            return self._read(history["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _read(self, steps: Iterable[Any]) -> list[Metrics]:
        found: list[Metrics] = []
        validations: list[Any] | None = None
        for step in steps:
            if not isinstance(step, dict) or not isinstance(step.get("step"), int):
                continue
            if "steps" in step:
                self.steps = int(step["steps"])
            if "num_tokens" in step:
                self.trained_tokens = int(step["num_tokens"])
            if "loss" not in step:
                continue
            if validations is None:
                validations = validations_of(self._folder)
            metrics = metrics_of(step, validations)
            self._seen.append(metrics)
            if step["step"] > self._last:
                self._last = step["step"]
                found.append(metrics)
        return found

    def fault(self) -> Fault | None:
        """The program's own word on why it failed; None if it ended without one."""
        try:
            said = json.loads((self._folder / _ERROR).read_text())
            kind, line = str(said["kind"]), str(said["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # Names of this host are none of the tenant's business.
        line = line.replace(f"{self._folder}/", "")
        shown = line.replace(self._model, Path(self._model).name) if self._model else line
        return Fault(kind, shown)

    def ending(self, code: int) -> str:
        """A description of an end without a word of the program's."""
        if code < 0:
            how = ", as the system does for memory" if code == -signal.SIGKILL else ""
            return f"the training ended by signal {-code}{how}"
        with self._log.open("rb") as log:
            log.seek(max(self._said_from, self._log.stat().st_size - _SAID_BYTES))
            said = log.read().decode(errors="replace")
        # The kind of the error alone: its text may name what is on this host.
        kinds = re.findall(r"^(\w[\w.]*(?:Error|Exception)): ", said, re.MULTILINE)
        return f"the training ended with exit code {code}" + (f" ({kinds[-1]})" if kinds else "")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # cut by a kill
        return None


def _end_with(parent: int) -> Any:
    """For the child, before it runs: end with the worker, whatever ends that."""
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        if library is not None:
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it ended in between
                os._exit(1)

    return prepare
