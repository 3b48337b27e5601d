"""Other projects' programs, each in a virtual environment of its own.

The environments are kept in $BMT_NEIGHBORS (default: `.bmt/neighbors`), because Open WebUI's takes
minutes and gigabytes. Nothing is installed into the environment of the tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.support.programs import ROOT
from tests.support.served import Served

EXAMPLES = ROOT / "examples" / "neighbors"
KEPT = Path(os.environ.get("BMT_NEIGHBORS", ROOT / ".bmt" / "neighbors"))
#: Versions that docs/serving/neighbors.md names.
VERSIONS = {
    "litellm": "litellm[proxy]==1.108.7",
    "langchain": "langchain-openai==1.7.4",
    "webui": "open-webui==0.12.4",
    "ray": "ray[serve]==2.60.0",
}
PROMPT = "Name three colors."
TOKENS = 40


@dataclass(frozen=True)
class Neighborhood:
    """The server; `version` answers as `reverse` and as `reverse:prod`. key: of scope infer."""

    server: Served
    version: str
    key: str
    metrics_url: str

    def answer(self, model: str, prompt: str = PROMPT, tokens: int = TOKENS) -> str:
        """The server's own greedy answer, without a neighbor in between."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        asked = httpx2.post(
            f"{self.server.url}/v1/chat/completions",
            json={**body, "max_tokens": tokens, "temperature": 0},
            headers=self.server.headers,
            timeout=120,
        )
        asked.raise_for_status()
        content: str = asked.json()["choices"][0]["message"]["content"]
        return content

    def requests(self, mask: str) -> float:
        """Answered requests to a mask, since the server's start."""
        figures = self.server.metrics()
        return sum(n for name, n in figures.items() if f'bmt_requests_total{{mask="{mask}"' in name)


def python_of(name: str) -> Path:
    """Python of a neighbor's environment, made at the first call. Raises if pip does."""
    folder = KEPT / name
    made = folder / "requirements.txt"
    if not made.exists() or made.read_text().strip() != VERSIONS[name]:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [f"{folder}/bin/python", "-m", "pip", "install", "-q", VERSIONS[name]]
        subprocess.run(install, check=True)
        made.write_text(VERSIONS[name] + "\n")
    return folder / "bin" / "python"


def settings_in(file: Path) -> dict[str, str]:
    """Variables that a file of assignments sets, as a shell reads it."""
    said = subprocess.check_output(
        ["env", "-i", "sh", "-c", f'set -a; . "{file}"; exec env -0'], text=True
    )
    pairs = (line.partition("=") for line in said.split("\0") if line)
    return {name: value for name, _, value in pairs if name not in ("PWD", "SHLVL", "_", "OLDPWD")}


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    ready: str,
    log: Path,
    env: Mapping[str, str],
    cwd: Path = ROOT,
    within_s: float = 300,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program from the time that `ready`, a URL, answers 200, until the block's end."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, **env},
        )
    try:
        deadline = time.monotonic() + within_s
        while not _answers(ready):
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else "is not ready"
                raise AssertionError(f"{command[0]} {what}:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False
