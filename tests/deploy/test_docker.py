"""Dockerfiles: hadolint, and the properties that the chart relies on."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.programs import ROOT, tool

FILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_hadolint(file):
    done = subprocess.run(
        [tool("hadolint"), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_properties_that_the_chart_relies_on(file):
    text = file.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert "USER 10001:10001" in final
    assert "HEALTHCHECK" in final
    assert "org.opencontainers.image.licenses" in final
    assert "pip install" not in final, "build tools belong to the first stage"
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert re.fullmatch(r"[\w/-]+:\d+\.\d+\.\d+-[\w-]+", image), f"{image} is not pinned"
    (program,) = re.findall(r'ENTRYPOINT \["([\w-]+)"\]', final)
    assert program in PROJECT["scripts"]
    (extras,) = re.findall(r'pip install "\.\[(.+)\]"', text)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_copied_files_exist_and_are_in_the_build_context(file):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", file.read_text(), re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert Path(ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
