"""vLLM options that masks require on this host: eager execution, float32."""

from __future__ import annotations

from pathlib import Path

import torch
from vllm.platforms import current_platform

from bmt_server.vllm_integration import cpu_environment
from bmt_server.worker.kernels import selection


def eager_reason() -> str | None:
    """Reason why vLLM must run eagerly on this host; None if it may compile and capture graphs."""
    if current_platform.is_cuda_alike() and not selection.supports_cuda_graphs():
        return (
            "masks run on the portable kernel, which CUDA graphs cannot capture; the Triton kernel "
            "needs CUDA and the triton package"
        )
    folder = Path(torch.__file__).parent
    if current_platform.is_cpu() and any(c.isspace() for c in str(folder)):
        # Inductor links against this folder and passes its path to the compiler unquoted.
        return f"vLLM's compiler cannot use torch from a path with spaces ({folder})"
    return None


def float32_reason() -> str | None:
    """Reason to compute in float32 on this host; None if 16-bit weights are no slower."""
    level = cpu_environment.lacks_16_bits()
    if current_platform.is_cpu() and level:
        return (
            f"this CPU ({level}) has no instructions for 16-bit weights, and float32 is several "
            "times faster"
        )
    return None
