"""The pinned requirements: those of this pyproject.toml, and faults of theirs are found."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """The tool as a module, on a copy of what it reads and writes."""
    spec = importlib.util.spec_from_file_location("bmt_lock", ROOT / "tools/lock.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bmt_lock", module)
    spec.loader.exec_module(module)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("constraints", "deploy/docker/requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    moved = [
        module.Lock(tmp_path / x.path.relative_to(ROOT), x.device, x.extras, x.left_out)
        for x in module.LOCKS
    ]
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints")
    monkeypatch.setattr(module, "LOCKS", moved)
    torch = tmp_path / module.TORCH_CPU.relative_to(ROOT)
    monkeypatch.setattr(module, "TORCH_CPU", torch)
    return module


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_files_are_those_of_this_project(lock):
    assert list(lock.check()) == []


def test_a_new_requirement_makes_the_files_old(lock):
    change(lock.PROJECT, '"redis>=6.0"', '"redis>=99.0"')
    found = list(lock.check())
    assert any("not of this pyproject.toml" in line for line in found)
    assert any("pins redis" in line and "redis>=99.0" in line for line in found)


def test_a_package_that_is_not_pinned_is_named(lock):
    change(lock.PROJECT, 's3 = ["s3fs>=2024.2"]', 's3 = ["s3fs>=2024.2", "no-such-package"]')
    assert any("trainer.txt lacks no-such-package" in line for line in lock.check())


def test_a_relative_folder_of_wheels_is_found(lock, tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    monkeypatch.chdir(tmp_path)
    ran = []

    def uv(command, cwd, **options):
        ran.append(Path(cwd, command[command.index("--find-links") + 1]))
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(lock.subprocess, "run", uv)
    lock.resolve(lock.LOCKS[0], "wheels")
    assert ran == [tmp_path / "wheels"]


def test_images_hold_the_versions_of_the_constraints(lock):
    path = next(x.path for x in lock.LOCKS if x.path.name == "server-cpu.txt")
    (version,) = lock.pins(path)["redis"]
    change(path, f"redis=={version}", "redis==7.0.0")
    assert any("server-cpu.txt pins redis 7.0.0, unlike cpu.txt" in x for x in lock.check())
    change(lock.TORCH_CPU, "torch==", "torch==1")
    assert any("torch-cpu.txt is out of date" in line for line in lock.check())


def test_a_missing_file_is_named(lock):
    lock.LOCKS[0].path.unlink()
    assert "constraints/cpu.txt is missing; run `python tools/lock.py`" in list(lock.check())


def test_each_file_that_an_image_downloads_has_hashes(lock):
    for one in lock.LOCKS:
        blocks = re.split(r"\n(?=[a-z0-9])", one.path.read_text().split("\n", 1)[1])
        hashed = ["--hash=sha256:" in block for block in blocks if "==" in block]
        assert hashed
        assert all(hashed) is (one.within is not None)
        assert any(hashed) is (one.within is not None)
