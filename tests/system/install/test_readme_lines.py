"""README's install lines, run as printed in a clean virtual environment; then a server answers.

With the versions of the constraints, with the newest of every package, and with the lowest that
pyproject.toml allows. Where PyTorch's index of CPU builds is out of reach, pip takes the build that
it finds as it is set up.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import bmt_core
import httpx2
import pytest
from bmt_client import BmtClient

from tests.support.masks import random_mask_of
from tests.support.scenarios.figures import Figures
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text()
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "core", "trainer", "server", "client")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def printed() -> list[str]:
    """The lines of README's block that installs."""
    (block,) = re.findall(r"```bash\n(python3 -m venv .*?)```", README, re.DOTALL)
    return block.splitlines()


class Clean:
    """A folder with a project's sources, and an environment without anything of this one's."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir(parents=True)
        for name in (*SOURCES, "constraints"):
            at = ROOT / name
            copy = shutil.copytree if at.is_dir() else shutil.copy
            copy(at, self.source / name)
        self.home = folder / "home"
        self.home.mkdir()
        python = Path(getattr(sys, "_base_executable", None) or sys.executable).parent
        pip = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
        # An index that is out of reach is asked once for each package, not six times.
        self.env = pip | {
            "PATH": f"{python}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "PIP_RETRIES": "0",
        }

    def run(self, line: str) -> str:
        print("$", line, flush=True)
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=self.source,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}"
        return done.stdout

    def program(self, name: str) -> str:
        return str(self.source / ".venv/bin" / name)


def lowest(clean: Clean) -> str:
    """The line that installs the lowest versions; uv chooses them."""
    places = shlex.split(os.environ.get("PIP_FIND_LINKS", "")) or []
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "pyproject.toml"]
    command += ["--resolution", "lowest-direct", "--no-header", "--no-annotate"]
    command += ["--extra", "cpu", "--extra", "client", "-o", "lowest.txt"]
    command += [word for place in places for word in ("--find-links", place)] or [
        *("--index", TORCH_INDEX, "--index-strategy", "unsafe-best-match")
    ]
    subprocess.run(command, cwd=clean.source, check=True)
    return f".venv/bin/pip install --extra-index-url {TORCH_INDEX} -r lowest.txt '.[cpu,client]'"


@pytest.mark.parametrize("versions", ["printed", "newest", "lowest"])
def test_the_lines_for_cpus(smol, tmp_path, versions):
    figures, start = Figures(f"install_{versions}", "install"), time.monotonic()
    clean = Clean(tmp_path / "clean")
    make, install, doctor = printed()
    if versions == "newest":
        install = install.replace("-c constraints/cpu.txt", f"--extra-index-url {TORCH_INDEX}")
    for line in (make, lowest(clean) if versions == "lowest" else install, doctor):
        said = clean.run(line)
    assert "fail" not in said.split(), said
    figures.record("installed_in", time.monotonic() - start, "s", size=versions)
    served = Served(
        smol,
        tmp_path,
        "--enforce-eager",
        wait=False,
        program=[clean.program("bmt-server")],
        cwd=clean.home,
        inherit=clean.env,
    )
    try:
        served.wait(900)
        with BmtClient(base_url=served.url, api_key=served.key) as client:
            client.upload(bmt_core.encode(random_mask_of(smol, 0, 0.002)), name="m")
        body = {"model": "m", "prompt": "The sun", "max_tokens": 4}
        url = f"{served.url}/v1/completions"
        answer = httpx2.post(url, json=body, headers=served.headers, timeout=120)
        figures.record("answers", answer.status_code, "status", "== 200", size=versions)
        listed = clean.run(
            f"BMT_URL={served.url} BMT_API_KEY={served.key} .venv/bin/bmt-client list --json"
        )
        assert '"m"' in listed
        # Before the end: at SIGTERM vLLM logs a traceback of its own.
        assert "Traceback" not in served.log.read_text()
    finally:
        code = served.stop()
    figures.record("exit_code", code, "code", "== 0", size=versions)
    figures.end()


def test_the_line_for_gpus_can_be_met(tmp_path):
    """Its packages are chosen, not downloaded: together they have gigabytes."""
    clean = Clean(tmp_path / "clean")
    make, install, _ = printed()
    clean.run(make)
    (gpu,) = re.findall(r"`(-c constraints/gpu.txt '[^`]+')`", README)
    line = install.partition(" -c ")[0]
    said = clean.run(f"{line} --dry-run {gpu}")
    assert re.search(r"Would install .*\bvllm-0\.33", said, re.DOTALL), said[-2000:]
