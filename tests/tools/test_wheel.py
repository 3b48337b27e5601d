"""The distribution: built, its metadata read, installed with nothing but its dependencies."""

from __future__ import annotations

import email
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS = tuple(PROJECT["scripts"])


def run(*command: str | Path, exit_code: int = 0) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == exit_code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The programs' folder of an environment that holds the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "bin"


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
        files = set(archive.namelist())
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert urls == PROJECT["urls"]
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)} <= set(
        metadata.get_all("Classifier")
    )
    # Groups are for checkouts; who installs the wheel does not see them.
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    for package in ("bmt_core", "bmt_trainer", "bmt_server", "bmt_client"):
        assert f"{package}/py.typed" in files
    assert {f"bmt_trainer/templates/tools.{kind}" for kind in ("jinja", "response.json")} <= files
    # What the console's pages are made of goes along, whatever it is.
    console = ROOT / "server/bmt_server/console"
    assert {
        f"bmt_server/console/{path.relative_to(console).as_posix()}"
        for part in ("templates", "static")
        for path in (console / part).iterdir()
    } <= files
    # What the CPU kernel is compiled from goes along.
    assert any(f.endswith("kernels/native/bmt.cpp") for f in files)
    assert not [f for f in files if f.startswith(("tests/", "benchmarks/", "tools/"))]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_name_the_extra_that_they_lack(bare, program):
    """One line that can be pasted, and no traceback."""
    said = run(bare / program, "--help", exit_code=1).strip()
    assert said.startswith(f"{program}: ")
    assert "pip install 'bmt-adapters[" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_of_this_environment_show_their_help(program):
    said = run(Path(sys.executable).with_name(program), "--help")
    assert program in said
    assert run(Path(sys.executable).with_name(program), "-h") == said
