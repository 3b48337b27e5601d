"""Programs that a model wrote, run in a sandbox: without network, with bounds of time, memory and
files, and without a way to other processes. See `inside`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.sandbox import inside

#: The switch that a user sets for running such programs.
SETTING = "run_model_code"
_NAMESPACES = ("--user", "--map-root-user", "--net", "--pid", "--ipc", "--uts", "--mount")
_SHOWN = 300


@dataclass(frozen=True)
class Sandbox:
    """Bounds of a program.

    cpu_seconds: of the processor, so that a busy machine changes no outcome; seconds: by the clock;
    memory_bytes: of address space; files_bytes: of its folder, and of a file. setting: the switch
    that allows its programs, for errors.
    """

    cpu_seconds: int = 4
    seconds: int = 30
    memory_bytes: int = 1 << 30
    files_bytes: int = 16 << 20
    setting: str = SETTING

    def passes(self, program: str) -> bool:
        """True if the program runs to its end. Raises ConfigError where it cannot be isolated."""
        return self._run(program, "") is not None

    def result(self, program: str, name: str) -> str | None:
        """The beginning of what the program leaves under a global name, as text.

        None if it does not run to its end. Raises ConfigError where it cannot be isolated.
        """
        return self._run(program, name)

    def _run(self, program: str, result: str) -> str | None:
        unshare = shutil.which("unshare")
        if unshare is None:
            raise self._refusal("the program unshare (util-linux) is missing")
        token = secrets.token_hex(16)
        given = {
            **{n: getattr(self, n) for n in ("cpu_seconds", "seconds", "memory_bytes")},
            **{"files_bytes": self.files_bytes, "program": program, "token": token},
            "result": result,
        }
        process = subprocess.Popen(
            [unshare, *_NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
            + ["--", sys.executable, "-I", "-B", str(Path(inside.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # No key of the user's, which may be in the environment.
            env={
                "PATH": os.defpath,
                "LANG": "C.UTF-8",
                "HOME": inside.FOLDER,
                "TMPDIR": inside.FOLDER,
            },
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(given).encode())
                process.stdin.close()
            except BrokenPipeError:  # it was refused before it read
                pass
            done = inside.READY + token.encode()
            # A result has no length that is known before: it ends with its process.
            said = self._said(process, b"" if result else done)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # ends its namespace with it
            process.wait()
        assert process.stderr is not None
        assert process.stdout is not None
        with process.stderr as stderr, process.stdout:
            if not said.startswith(inside.READY):
                why = said.removeprefix(inside.REFUSED) or stderr.read(_SHOWN)
                shown = " ".join(why.decode(errors="replace").split())
                # Nothing is said by one that the system ended, or that a busy machine did not run.
                late = f"its process ended, or was not ready within {self.seconds} s"
                raise self._refusal(shown or late)
        if not (said.startswith(done) if result else said == done):
            return None
        return said.removeprefix(done).decode(errors="replace")

    def _said(self, process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
        """The output of the process, until its end or a second more than it has."""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        said, until = b"", time.monotonic() + self.seconds + 1
        while time.monotonic() < until and len(said) < max(len(wanted), _SHOWN):
            some = process.stdout.read(_SHOWN)
            if some == b"":
                break
            said += some or b""
            if wanted and said == wanted:
                break
            time.sleep(0.005)
        return said

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.setting}: code is not run, because it cannot be isolated here ({why}); "
            "allow unprivileged user namespaces and seccomp, or leave the setting out"
        )


def check(sandbox: Sandbox = Sandbox()) -> None:
    """Raise ConfigError if programs cannot be isolated here."""
    if not sandbox.passes("pass"):
        raise sandbox._refusal("an empty program did not end")
