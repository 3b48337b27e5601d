"""One shell that runs the blocks of a page in order, in a folder of its own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.http.ports import free_port
from tests.support.pages.blocks import ROOT, Block

PORT = "8000"
_MARK = "\x1e"
_ENDS_WITHIN_S = 60


class PageError(AssertionError):
    """A block of a page failed, or printed something else than the page shows."""


def checkout(folder: Path) -> Path:
    """A folder that looks like a reader's checkout: examples and recipes, and nothing made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("examples", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(
    given: Sequence[Block],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    port: int = 0,
    within_s: float = 3000,
) -> list[str]:
    """Run blocks in one shell; returns what each printed, the output of both streams.

    The port alone differs from the page: `port`, or a free one. The shell ends at the first command
    that fails. Everything that it started is ended. Raises PageError.
    """
    chosen = str(port or free_port())
    script = folder / ".page.sh"
    script.write_text("set -eo pipefail\n" + "".join(map(_step, given)).replace(PORT, chosen))
    log = folder / ".page.log"
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", script.name],
            cwd=folder,
            env={
                **os.environ,
                # Where `bmt-client` looks by default is another port.
                "BMT_URL": f"http://127.0.0.1:{chosen}",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                **(environment or {}),
                "PATH": programs,
            },
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(within_s)
        finally:
            _end(process)
    parts = log.read_text(errors="replace").split(_MARK)[1:]
    if code:
        at = given[len(parts) - 1].place if parts else "its start"
        raise PageError(f"exit code {code} at {at}:\n{parts[-1][-6000:] if parts else ''}")
    return [part.partition("\n")[2].replace(chosen, PORT) for part in parts]


def _step(block: Block) -> str:
    """Shell text of a block: a file is written, Python is run."""
    mark = f"printf '{_MARK}\\n'\n"
    if block.language == "bash":
        return mark + block.text
    if block.title:
        return f"{mark}cat > {shlex.quote(block.title)} <<'END_OF_PAGE'\n{block.text}END_OF_PAGE\n"
    return f"{mark}python - <<'END_OF_PAGE'\n{block.text}END_OF_PAGE\n"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what the shell started: its session, first by SIGTERM."""
    for number, within_s in ((signal.SIGTERM, _ENDS_WITHIN_S), (signal.SIGKILL, 10)):
        deadline = time.monotonic() + within_s
        for pid in (started := _session(process.pid)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                started.discard(pid)
        while _session(process.pid) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.1)
    process.wait()


def _session(leader: int) -> set[int]:
    """Processes of a session; zombies have ended and do not count."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def compare(block: Block, printed: str) -> None:
    """Raise PageError if a run printed lines of another shape than the page shows.

    Numbers, digests, times and blanks are not compared. A line `…` stands for any lines. Of a loose
    output it is enough that something was printed.
    """
    if block.loose:
        if not printed.strip():
            raise PageError(f"{block.place}: the command printed nothing")
        return
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else f"{re.escape(_shape(line))}\n"
        for line in block.output.splitlines()
    )
    if not re.fullmatch(pattern, "".join(f"{_shape(line)}\n" for line in printed.splitlines())):
        raise PageError(f"{block.place}: the page shows\n{block.output}\nand it printed\n{printed}")


def _shape(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "@", line)
    line = re.sub(r"-?\d[\d,.]*", "#", line)
    return " ".join(re.sub(r"[━╸╺─]+", "─", line).split())
