"""The machine of a GPU run: its facts, and what it lacks for the run, in one line each."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu.parts import Job, Keep

#: Packages that parts import, beside torch; `tools/setup.py` installs all of them.
PACKAGES = ("vllm", "triton", "transformers", "safetensors", "peft", "pytest")
SETUP = "BMT_DEVICE=gpu python3 tools/setup.py"
# bfloat16 and the kernels' instructions, from Ampere on.
CAPABILITY = (8, 0)
# vLLM's share of the memory, which has to be free (`--gpu-memory-utilization`), and the least that
# holds the random base (16 GB), its masks, vLLM's buffers and some KV cache.
SHARE, LEAST_GB = 0.9, 22
COMPILES = "would be compiled at the first start, for minutes: not used"


class UnfitError(RuntimeError):
    """This machine cannot run the parts; the message names what is missing, and the fix."""


def check(job: Job, keep: Keep) -> None:
    """Keep the device's facts. Raises UnfitError.

    A process of its own, since looking at a device takes some of its memory until the process ends.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UnfitError(f"not installed: {', '.join(missing)}; run {SETUP}")
    if not torch.cuda.is_available():
        keep("device", "none: nothing is measured")
        return
    if torch.version.cuda is None:
        raise UnfitError("this torch is for another vendor's GPUs, and the kernels need CUDA")
    if reason := compiler_missing():
        raise UnfitError(reason)
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    keep(
        "device",
        {
            "name": torch.cuda.get_device_name(),
            "capability": f"{capability[0]}.{capability[1]}",
            "memory_gb": round(total / 1e9, 1),
            "free_gb": round(free / 1e9, 1),
            "cuda": torch.version.cuda,
            "flashinfer": flashinfer(),
        },
    )
    if reason := unfit(capability, free, total, random_base=not (job.model or job.tiny)):
        raise UnfitError(reason)


def compiler_missing() -> str | None:
    """Reason why Triton cannot compile its launchers, which are C; None if it can."""
    # As Triton looks for them (`triton/runtime/build.py`).
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: install gcc, or name one in CC"
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    headers = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    if not headers.is_file():
        return f"Triton needs Python's headers ({headers}): install python3-dev"
    return None


def unfit(capability: tuple[int, int], free: int, total: int, *, random_base: bool) -> str | None:
    """Reason why the device is too old or small, or in use; None if it serves. Memory in bytes."""
    if capability < CAPABILITY:
        return f"the device has compute capability {capability}, and bfloat16 needs {CAPABILITY}"
    if free < SHARE * total:
        used, most = (total - free) / 1e9, (1 - SHARE) * total / 1e9
        return (
            f"other processes hold {used:.1f} GB of the device, and at most {most:.1f} may be in "
            "use; end them (nvidia-smi), or choose a device by CUDA_VISIBLE_DEVICES"
        )
    if random_base and total < LEAST_GB * 1e9:
        return (
            f"the device has {total / 1e9:.1f} GB, and a base of 8B needs {LEAST_GB}; "
            "name a smaller one by --model"
        )
    return None


def flashinfer() -> str:
    """The state of FlashInfer's kernels here, as vLLM finds it (`utils/flashinfer.py`)."""
    if find_spec("flashinfer") is None:
        return "not installed"
    if find_spec("flashinfer_cubin") or find_spec("flashinfer_jit_cache"):
        return "compiled kernels installed"
    compiles = shutil.which("ninja") and (os.environ.get("CUDA_HOME") or shutil.which("nvcc"))
    return COMPILES if compiles else "off: no nvcc or no ninja"
