"""Child processes that do not outlive the demo, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

# A registry or a key that the user's own shell is set up for is not the demo's.
_FOREIGN = ("BMT_URL", "BMT_API_KEY", "BMT_REGISTRY", "BMT_DATA_DIR", "BMT_SERVER_SETTINGS")
_PATIENCE_S = 10.0


def program(name: str) -> str:
    """A command of this environment; it need not be on the PATH."""
    return str(Path(sys.executable).with_name(name))


def clear_environment() -> None:
    """Take out of this process's environment what would lead the demo or its children elsewhere."""
    for name in _FOREIGN:
        os.environ.pop(name, None)
    past = (os.environ.get("no_proxy"), os.environ.get("NO_PROXY"), "127.0.0.1")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(p for p in past if p)


def end_like_ctrl_c() -> None:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does, so that it cleans up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, but an interrupted child may end by itself before it is killed."""
    with subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, **options) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            child.terminate()
            try:
                child.wait(_PATIENCE_S)
            except BaseException:
                child.kill()
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def end_group(leader: int) -> None:
    """Kill what is left of the process group that `leader` began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
