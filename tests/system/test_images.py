"""Install steps of the Dockerfiles, run one by one in clean virtual environments.

No engine of containers is needed: the build stage's COPY and RUN lines are followed in a folder,
and the program that the image starts is started. An image for GPUs is resolved, not downloaded.
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
from bmt_server.vllm_integration.versions.check import TESTED

from tests.support.masks import random_mask_of
from tests.support.scenarios.figures import Figures
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
BUILT = "/opt/bmt"


class Built:
    """The build stage of a Dockerfile, done in `folder`. dry: tell what pip would install."""

    def __init__(self, name: str, folder: Path, *, dry: bool = False) -> None:
        text = re.sub(r"\\\n\s*", " ", (DOCKER / f"{name}.Dockerfile").read_text())
        _, stage, final = re.split(r"^FROM ", text, flags=re.MULTILINE)
        self.root, self._source, self._dry = folder / "bmt", folder / "source", dry
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
        self._source.mkdir(parents=True)
        self.output = ""
        for line in stage.splitlines():
            word, _, rest = line.partition(" ")
            if word == "COPY":
                self._copy(rest.split())
            elif word == "RUN":
                for command in rest.split("&&"):
                    self._do(shlex.split(command))
            elif word == "ENV":
                self._set(rest)
        # What the final stage sets, in folders of ours.
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        for line in final.splitlines():
            if line.startswith("ENV "):
                self._set(line.removeprefix("ENV "))

    def _copy(self, names: list[str]) -> None:
        *sources, target = names
        for source in sources:
            at, to = ROOT / source, self._source / target / (source if target == "./" else "")
            if at.is_dir():
                shutil.copytree(at, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(at, to)

    def _do(self, command: list[str]) -> None:
        command = [x.replace(BUILT, str(self.root)) for x in command]
        if command[0] == "python":
            # With another Python than the image's, pip finds other packages.
            command[0] = getattr(sys, "_base_executable", None) or sys.executable
        if self._dry and "install" in command:
            command.append("--dry-run")
        done = self.run(command)
        if done.returncode and "--index-url" in command:
            # Offline, or behind a registry that has the same builds.
            at = command.index("--index-url")
            print(f"{command[at + 1]} is out of reach: as pip is set up", flush=True)
            done = self.run([*command[:at], *command[at + 2 :]])
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        self.output = done.stdout

    def run(self, command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run in the image's environment, from the sources if not elsewhere."""
        print("$", shlex.join(command), flush=True)
        return subprocess.run(
            command,
            cwd=cwd or self._source,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _set(self, pairs: str) -> None:
        for pair in shlex.split(pairs):
            name, _, value = pair.partition("=")
            value = value.replace(BUILT, str(self.root)).replace("$PATH", self.env["PATH"])
            self.env[name] = re.sub("^/scratch", str(getattr(self, "scratch", "")), value)

    def program(self, name: str) -> str:
        return str(self.root / "bin" / name)


def test_server_for_cpus(smol, tmp_path):
    """The installed server answers with an uploaded mask."""
    figures, start = Figures("image_server_cpu", "images"), time.monotonic()
    built = Built("server.cpu", tmp_path / "image")
    figures.record("installed_in", time.monotonic() - start, "s", size="once")
    served = Served(
        smol,
        tmp_path,
        "--enforce-eager",
        wait=False,
        program=[built.program("bmt-server")],
        cwd=built.scratch,
        inherit=built.env,
    )
    try:
        served.wait(600)
        with BmtClient(base_url=served.url, api_key=served.key) as client:
            client.upload(bmt_core.encode(random_mask_of(smol, 0, 0.002)), name="m")
        body = {"model": "m", "prompt": "The sun", "max_tokens": 4}
        url = f"{served.url}/v1/completions"
        answer = httpx2.post(url, json=body, headers=served.headers, timeout=120)
        figures.record("answers", answer.status_code, "status", "== 200", size="with a mask")
    finally:
        code = served.stop()
    figures.record("exit_code", code, "code", "== 0", size="after SIGTERM")
    figures.end()


def test_trainer(smol, tmp_path):
    """The installed trainer makes a mask that the installed client reads."""
    figures, start = Figures("image_trainer", "images"), time.monotonic()
    built = Built("trainer", tmp_path / "image")
    figures.record("installed_in", time.monotonic() - start, "s", size="once")
    mask = built.scratch / "m.bmt"
    flags = "--steps 1 --train-examples 16 --calibration-prompts 16 --heldout 2 --max-new-tokens 4"
    where = ["--model", str(smol), "--dataset", "task:sort-numbers", "--output", str(mask)]
    for command in (
        [built.program("bmt-train"), "sft", *where, *flags.split()],
        [built.program("bmt-client"), "inspect", str(mask)],
    ):
        done = built.run(command, built.scratch)
        assert done.returncode == 0, done.stdout[-3000:]
    zeros = bmt_core.load(mask).zeros
    figures.record("zeros", zeros, "zeros", ">= 1", size="a step of SFT")
    figures.end()


def test_server_for_gpus(tmp_path):
    """Its requirements can be met together."""
    figures = Figures("image_server_gpu", "images")
    built = Built("server.gpu", tmp_path / "image", dry=True)
    chosen = re.findall(r"\bvllm-([\d.]+\d)", built.output.rsplit("Would install", 1)[-1])
    minors = [tuple(map(int, version.split(".")[:2])) for version in chosen]
    assert minors == [max(TESTED)], built.output[-2000:]
    figures.record("resolved", 1, "times", "== 1", size="not downloaded")
    figures.end()
