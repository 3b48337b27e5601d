"""The set-up script: what it picks, what it says, and that a second run does nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "setup.py"


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """The script as a module, on a project folder of its own that has nothing set up."""
    spec = importlib.util.spec_from_file_location("bmt_setup", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for name, value in {
        "ROOT": tmp_path,
        "VENV": tmp_path / ".venv",
        "STAMP": tmp_path / ".venv" / "stamp.json",
        "LOG": tmp_path / "setup.log",
    }.items():
        monkeypatch.setattr(module, name, value)
    module.LOG.write_text("")
    return module


def pips(setup, monkeypatch, plans: dict[str, list[str]]):
    """Let pip plan `plans`, keyed by the option that is asked; returns the installs that follow."""
    installs = []

    def planned(options):
        names = plans["".join(options[:1])]
        if not names:
            raise setup.SetupError("look for a CPU build of torch failed (no matching version)")
        return names

    monkeypatch.setattr(setup, "planned", planned)
    monkeypatch.setattr(setup, "step", lambda what, command: installs.append(command))
    return installs


CPU = ["torch", "sympy"]
CUDA = ["torch", "nvidia-cublas", "cuda-bindings"]


def test_pips_own_choice_comes_first(setup, monkeypatch, capsys):
    installs = pips(setup, monkeypatch, {"": CPU})
    setup.install_cpu_torch()
    assert [c[-1] for c in installs] == [setup.TORCH]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("first", [CUDA, []], ids=["brings CUDA", "offers none"])
def test_pytorchs_index_comes_next_and_each_failure_is_explained(setup, monkeypatch, capsys, first):
    plans = {"": first, "--extra-index-url": CUDA, "--index-url": CPU}
    installs = pips(setup, monkeypatch, plans)
    setup.install_cpu_torch()
    assert [c[-2:] for c in installs] == [["--index-url", setup.TORCH_CPU_INDEX]]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert ("2 CUDA packages" in lines[0]) == bool(first)
    assert all("no CPU build of torch from" in line for line in lines)


def test_no_build_anywhere_is_an_error(setup, monkeypatch):
    pips(setup, monkeypatch, {"": CUDA, "--extra-index-url": [], "--index-url": []})
    with pytest.raises(setup.SetupError, match="no CPU build"):
        setup.install_cpu_torch()


UNFIT = "RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    ("states", "reached", "kept"),
    [([""], True, True), ([UNFIT, ""], True, True), ([UNFIT, UNFIT], True, False)]
    + [([UNFIT], False, False)],
    ids=["it fits", "PyTorch's fits", "none fits", "PyTorch's index is out of reach"],
)
def test_an_image_library_stays_where_a_build_fits(
    setup, monkeypatch, capsys, states, reached, kept
):
    runs, states = [], iter(states)

    def step(what, command):
        runs.append(command)
        if not reached and "--index-url" in command:
            raise setup.SetupError(what)

    monkeypatch.setattr(setup, "unusable", lambda name: next(states))
    monkeypatch.setattr(setup, "version", lambda name: "0.28.0+cu130")
    monkeypatch.setattr(setup, "step", step)
    setup.fit_vision()
    assert all("torchvision==0.28.0" in c for c in runs if "--index-url" in c)
    assert any("uninstall" in c for c in runs) != kept
    assert ("torchvision is left out: no build fits" in capsys.readouterr().out) != kept


def test_a_second_run_does_nothing(setup, monkeypatch):
    monkeypatch.setenv("BMT_DEVICE", "cpu")
    runs = []
    monkeypatch.setattr(setup, "install", runs.append)
    assert setup.main() == 0
    assert setup.main() == 0
    assert runs == ["cpu"]
    monkeypatch.setenv("BMT_DEVICE", "gpu")
    assert setup.main() == 0
    assert runs == ["cpu", "gpu"]


def test_dependencies_count_and_linters_do_not(setup):
    before = setup.stamp("cpu")
    project = setup.ROOT / "pyproject.toml"
    text = project.read_text()
    project.write_text(text.replace("line-length = 100", "line-length = 90"))
    assert setup.stamp("cpu") == before
    project.write_text(text.replace('"numpy>=1.26"', '"numpy>=2"'))
    assert setup.stamp("cpu") != before


def test_an_unknown_device_is_refused(setup, monkeypatch, capsys):
    monkeypatch.setenv("BMT_DEVICE", "tpu")
    assert setup.main() == 1
    assert "BMT_DEVICE is 'tpu'; it must be cpu or gpu" in capsys.readouterr().out


def test_an_old_python_gets_one_clear_line(setup, monkeypatch, capsys):
    monkeypatch.setattr(setup.sys, "version_info", (3, 10, 0))
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert setup.main() == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "3.11 or later" in line


def test_a_failing_step_shows_the_end_of_its_output(setup):
    code = "print('ERROR: No matching distribution'); raise SystemExit(3)"
    with pytest.raises(setup.SetupError, match="No matching distribution") as caught:
        setup.step("try it", [sys.executable, "-c", code])
    assert "try it failed" in str(caught.value)


def test_a_venv_module_without_pip_is_explained(setup, monkeypatch):
    def fail(what, command):
        raise setup.SetupError(what)

    monkeypatch.setattr(setup, "step", fail)
    with pytest.raises(setup.SetupError, match="install python3-venv"):
        setup.make_venv()


def test_make_finds_its_folder_from_anywhere(tmp_path):
    """Also where the path has a space, which make's own functions split at."""
    project = tmp_path / "a project"
    project.mkdir()
    (project / "Makefile").write_text((ROOT / "Makefile").read_text())
    for arguments, cwd in ((["-C", str(project)], tmp_path), (["-f", "Makefile"], project)):
        done = subprocess.run(
            ["make", "-n", *arguments, "clean", "setup"],
            cwd=cwd,
            capture_output=True,
            text=True,
            check=True,
            env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")},
        )
        assert f'cd "{project}" && rm' in done.stdout
        assert json.dumps(f"{project}/tools/setup.py") in done.stdout
