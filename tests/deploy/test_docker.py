"""Dockerfiles: hadolint, and the properties that the chart and Compose rely on."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.programs import ROOT, tool

FILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
REQUIREMENTS = ROOT / "deploy/docker/requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = re.compile(r"^ARG BASE=(python:(\d+\.\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64})$", re.MULTILINE)
each = pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Word and rest of each instruction, its lines joined, comments left out."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(word, " ".join(rest.split())) for word, _, rest in pairs]


def final_stage(file: Path) -> dict[str, list[str]]:
    """Instructions of the last stage by word."""
    found: dict[str, list[str]] = {}
    for word, rest in instructions(file):
        if word == "FROM":
            found = {}
        found.setdefault(word, []).append(rest)
    return found


@each
def test_hadolint(file):
    done = subprocess.run(
        [tool("hadolint"), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_one_base_by_version_and_digest():
    """Every stage of every image, so that a scanner's finding is renewed at once."""
    found = {BASE.search(file.read_text()).group(1) for file in FILES}
    assert len(found) == 1, found
    for file in FILES:
        stages = [rest for word, rest in instructions(file) if word == "FROM"]
        assert stages == ["${BASE} AS build", "${BASE}"], file.name


@each
def test_requirements_are_for_the_python_of_the_base(file):
    python = BASE.search(file.read_text()).group(2)
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    assert f'"--python-version", "{python}"' in (ROOT / "tools/lock.py").read_text()


@each
def test_nothing_is_installed_that_is_not_pinned(file):
    runs = [rest for word, rest in instructions(file) if word == "RUN"]
    installs = [part for run in runs for part in re.split(r"&&|;|\|\|", run) if " install " in part]
    pips = [part for part in installs if "pip" in part]
    assert pips
    for part in pips:
        # torch-cpu.txt pins versions; its hashes differ from index to index.
        hashed = "--require-hashes -r requirements/" in part
        own = part.rstrip().endswith("--no-deps /wheels/*.whl")
        torch = "--no-deps" in part and part.rstrip().endswith("-r requirements/torch-cpu.txt")
        assert hashed or own or torch, part
    for name in re.findall(r"requirements/([\w-]+\.txt)", " ".join(runs)):
        assert (REQUIREMENTS / name).exists(), name
    for run in runs:
        assert not re.search(r"\b(curl|wget|git clone)\b", run), run


@each
def test_properties_that_the_chart_relies_on(file):
    final = final_stage(file)
    assert final["USER"] == ["10001:10001"]
    assert "HEALTHCHECK" in final
    assert "ADD" not in final
    assert "pip install" not in " ".join(final["RUN"]), "build tools belong to the first stage"
    (program,) = re.findall(r'^\["([\w-]+)"\]$', final["ENTRYPOINT"][0])
    assert program in PROJECT["scripts"]
    env = dict(pair.split("=", 1) for pair in " ".join(final["ENV"]).split())
    # A UID of the platform's choice has no entry in /etc/passwd: neither a home nor a name.
    assert env["HOME"] == "/scratch"
    assert env["USER"]
    (made,) = re.findall(r"install -d -o bmt -g 0 -m 1777 ([^&]+)", " ".join(final["RUN"]))
    assert made.split() == ["/scratch", "/models"]
    assert final["VOLUME"] == ['["/scratch", "/models"]']
    writable = [value for name, value in env.items() if value.startswith("/") and name != "PATH"]
    read_only = [value for value in writable if not re.match(r"/(scratch|models)\b", value)]
    assert read_only in ([], ["/opt/bmt/cuda"]), "written, and the root file system is read-only"


@each
def test_labels(file):
    final = final_stage(file)
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', final["LABEL"][0]))
    assert final["ARG"][0] == f"VERSION={PROJECT['version']}"
    assert labels["version"] == "${VERSION}"
    assert labels["revision"] == "${REVISION}"
    assert labels["licenses"] == PROJECT["license"]
    assert labels["source"] == PROJECT["urls"]["Homepage"]
    assert labels["title"].startswith("bmt-")
    assert (ROOT / labels["documentation"].partition("/blob/main/")[2]).is_file()


@each
def test_the_build_line_in_its_comment_builds_it(file):
    (line,) = re.findall(r"^#   docker build -f (\S+) -t (\S+) \.$", file.read_text(), re.MULTILINE)
    assert ROOT / line[0] == file
    assert re.fullmatch(rf"bmt-adapters/\w+:{re.escape(PROJECT['version'])}(-cpu)?", line[1])


@each
def test_copied_files_exist_and_are_in_the_build_context(file):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for word, rest in instructions(file):
        if word != "COPY" or rest.startswith("--from"):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert Path(ROOT / source).exists(), source
            parents = [source, *map(str, Path(source).parents)]
            assert any(f"!{parent}" in ignored for parent in parents), source
