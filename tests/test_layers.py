"""Who may import whom, and what may not stand on the way of an upload."""

from __future__ import annotations

import ast
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "bmt_core": ROOT / "core" / "bmt_core",
    "bmt_trainer": ROOT / "trainer" / "bmt_trainer",
    "bmt_server": ROOT / "server" / "bmt_server",
    "bmt_client": ROOT / "client" / "bmt_client",
}
# What a package may import of ours beside itself.
ALLOWED = {
    "bmt_core": set(),
    "bmt_trainer": {"bmt_core", "bmt_client"},
    "bmt_server": {"bmt_core"},
    "bmt_client": {"bmt_core"},
}
SERVER = PACKAGES["bmt_server"]
# Evaluation is answered by our own engine where vLLM is installed.
EVALUATION = PACKAGES["bmt_trainer"] / "answering.py"
# offline.py and serve.py start vLLM; the rest of the package never sees it.
VLLM = {SERVER / "plugin.py", SERVER / "cli.py", SERVER / "offline.py", SERVER / "serve.py"}
VLLM |= {EVALUATION}
# One file per training method, the hooks that its trainers share, and what TRL is told first.
TRL = {"grpo.py", "hooks.py", "sdft.py", "sft.py", "trl_setup.py"}
FOLDERS = ("engine", "worker", "api")


def sources(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules that a file imports, and the lines."""
    package = [*path.relative_to(next(p for p in PACKAGES.values() if p in path.parents)).parts][
        :-1
    ]
    top = next(n for n, p in PACKAGES.items() if p in path.parents)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = [top, *package][: len(package) + 2 - node.level]
                module = ".".join([*base, *filter(None, [node.module])])
                yield module, node.lineno
                for alias in node.names:
                    yield f"{module}.{alias.name}", node.lineno
            elif node.module:
                yield node.module, node.lineno
                # `from bmt_server import api` imports bmt_server.api.
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", node.lineno


def all_imports() -> Iterator[tuple[str, Path, str, int]]:
    for package in PACKAGES:
        for path in sources(package):
            for name, line in imports(path):
                yield package, path, name, line


def test_packages_import_only_those_below_them():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package, path, name, line in all_imports()
        if (top := name.split(".")[0]) in PACKAGES and top not in ALLOWED[package] | {package}
        if not (path == EVALUATION and name.startswith("bmt_server.offline"))
    ]
    assert not wrong


def test_the_servers_folders_are_processes_and_do_not_import_each_other():
    wrong = []
    for path in sources("bmt_server"):
        own = path.relative_to(SERVER).parts[0]
        for name, line in imports(path):
            parts = name.split(".")
            other = parts[1] if parts[0] == "bmt_server" and len(parts) > 1 else ""
            # engine builds on worker: it is vLLM's side of the same process.
            pair = (own, other)
            if {own, other} <= set(FOLDERS) and own != other and pair != ("engine", "worker"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("vllm", lambda p: SERVER / "engine" in p.parents or p in VLLM),
        ("trl", lambda p: p.name in TRL and PACKAGES["bmt_trainer"] in p.parents),
        ("redis", lambda p: SERVER in p.parents),
    ],
)
def test_libraries_are_imported_only_where_they_belong(library, allowed):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for _, path, name, line in all_imports()
        if name.split(".")[0] == library and not allowed(path)
    ]
    assert not wrong


def test_worker_and_core_need_no_engine():
    for path in (SERVER / "worker").glob("*.py"):
        assert all(n.split(".")[0] not in ("vllm", "fastapi", "redis") for n, _ in imports(path))
    third = {n.split(".")[0] for p in sources("bmt_core") for n, _ in imports(p)}
    assert third - set(sys.stdlib_module_names) == {"bmt_core", "numpy", "zstandard"}


# Their readers run what the bytes say.
RUNS_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def test_nothing_that_runs_code_from_bytes_is_used():
    """No pickle, torch.load or numpy's pickled arrays anywhere in the product."""
    wrong = []
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text())):
                text = ast.unparse(node) if isinstance(node, ast.Call) else ""
                calls = ("torch.load(", "yaml.load(", "eval(", "exec(")
                if text.startswith(calls) or "allow_pickle" in text:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {text[:60]}")
            wrong += [
                f"{path.relative_to(ROOT)}:{line} {name}"
                for name, line in imports(path)
                if name.split(".")[0] in RUNS_CODE or name == "torch.load"
            ]
    assert not wrong


def test_files_stay_short():
    """300 lines are the signal to split; this is the wall behind it."""
    long = {
        str(p.relative_to(ROOT)): n
        for package in PACKAGES
        for p in sources(package)
        if (n := len(p.read_text().splitlines())) > 450
    }
    assert not long


def seconds(code: str) -> float:
    """CPU time of a fresh Python running `code`: wall time would tell of the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# What each stands on.
_CORE = "numpy, zstandard, dataclasses, hashlib, json, pathlib, tempfile"
LIGHT = {"bmt_core": _CORE, "bmt_client": f"{_CORE}, asyncio, email.message, http, urllib.parse"}


@pytest.mark.parametrize(("package", "libraries"), LIGHT.items())
def test_light_packages_import_quickly_and_without_torch(package, libraries):
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {package}; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert not {"torch", "vllm", "transformers", "trl"} & set(loaded)
    # Ratios of neighbours in time, for a machine's speed changes between rounds: 1.17 to 1.34 seen.
    ratios = [seconds(f"import {package}") / seconds(f"import {libraries}") for _ in range(9)]
    assert statistics.median(ratios) <= 1.6, ratios
