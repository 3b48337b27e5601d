"""Optional packages that cannot be imported: left out here and in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENDS_BADLY = (
    "import {name}.part\nraise RuntimeError('operator {name}::nms does not exist\\nmore')\n"
)
LOOK = (
    "import importlib.util, sys\n"
    "for name in sys.argv[1:]:\n"
    "    spec = importlib.util.find_spec(name)\n"
    "    try: __import__(name); print(name, spec is not None, 'imported')\n"
    "    except ImportError as error: print(name, spec is not None, type(error).__name__)\n"
)


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder with a package that works and one whose import fails in the middle."""
    for name, code in (("goodpart", ""), ("badpart", ENDS_BADLY.format(name="badpart"))):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(code)
        (tmp_path / "site" / name / "part.py").write_text("")
    info = tmp_path / "site" / "badpart-1.2+cu1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: badpart\nVersion: 1.2+cu1\n")
    return tmp_path / "site"


def run(packages: Path, code: str, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "BMT_LEFT_OUT"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LEAVE_OUT = (
    "from bmt_core.optional_packages import leave_out, fix\n"
    "found = leave_out(['goodpart', 'badpart', 'no_such_part'])\n"
)
NAMES = ("goodpart", "badpart", "badpart.part")


def test_only_the_one_that_fails_is_left_out_and_the_reason_is_a_line(packages):
    said = run(packages, LEAVE_OUT + "print(*found); print(fix(found))").splitlines()
    assert said[0] == "badpart 1.2+cu1 (operator badpart::nms does not exist)"
    assert said[1].startswith("pip install --force-reinstall --no-deps badpart==1.2")


def test_the_fix_of_a_package_without_metadata_names_no_version(packages):
    (packages / "badpart-1.2+cu1.dist-info" / "METADATA").unlink()
    (packages / "badpart-1.2+cu1.dist-info").rmdir()
    said = run(packages, LEAVE_OUT + "print(*found); print(fix(found))").splitlines()
    assert said[0].startswith("badpart of unknown version (")
    assert " --no-deps badpart" in said[1]
    assert "==" not in said[1]


@pytest.mark.parametrize(
    ("torch", "package"),
    [
        ("2.13.0+cpu", "torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"),
        ("2.14.1", "torchvision==0.29.1"),
        ("3.0.0a1", "torchvision"),
    ],
)
def test_the_fix_of_an_absent_torchvision_is_the_release_for_this_torch(packages, torch, package):
    info = packages / "torch.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n")
    code = "from bmt_core.optional_packages import fix_torchvision; print(fix_torchvision())"
    said = run(packages, code).strip()
    assert said == f"pip install --force-reinstall --no-deps {package}"


def test_libraries_find_it_absent(packages):
    code = LEAVE_OUT + "import sys; print([m for m in sys.modules if 'badpart' in m])\n"
    said = run(packages, code + LOOK.replace("sys.argv[1:]", "['goodpart', 'badpart']"))
    assert said.splitlines() == [
        "['badpart']",
        "goodpart True imported",
        "badpart False ModuleNotFoundError",
    ]


@pytest.mark.parametrize("way", ["subprocess", "spawn", "grandchild"])
def test_children_find_it_absent_too(packages, tmp_path, way):
    look, between = tmp_path / "look.py", tmp_path / "between.py"
    look.write_text(LOOK)
    between.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, {str(look)!r}, *sys.argv[1:]])\n"
    )
    start = {
        "subprocess": f"subprocess.run([sys.executable, {str(look)!r}, 'goodpart', 'badpart'])",
        "grandchild": f"subprocess.run([sys.executable, {str(between)!r}, 'goodpart', 'badpart'])",
        "spawn": "import multiprocessing, runpy; sys.argv[1:] = ['goodpart', 'badpart'];"
        "kind = multiprocessing.get_context('spawn').Process;"
        f"p = kind(target=runpy.run_path, args=({str(look)!r},)); p.start(); p.join()",
    }[way]
    said = run(packages, LEAVE_OUT + f"import subprocess, sys\n{start}")
    assert said.splitlines() == ["goodpart True imported", "badpart False ModuleNotFoundError"]


def test_a_sitecustomize_of_the_environment_still_runs(packages, tmp_path):
    (packages / "sitecustomize.py").write_text("print('theirs')\n")
    code = LEAVE_OUT + (
        "import subprocess, sys\n"
        "look = 'import sitecustomize; print(sitecustomize.__file__)'\n"
        "subprocess.run([sys.executable, '-c', look])"
    )
    assert run(packages, code).splitlines() == ["theirs", "theirs", f"{packages}/sitecustomize.py"]


def test_nothing_changes_where_all_can_be_imported(packages):
    code = (
        LEAVE_OUT.replace(", 'badpart'", "")
        + "import os; print(found, os.environ.get('BMT_LEFT_OUT'))"
    )
    assert run(packages, code).splitlines() == ["[] None"]
