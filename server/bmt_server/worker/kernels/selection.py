"""Choice of the masked delta's kernel by device, dtype and BMT_KERNEL."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from bmt_server.settings import SettingsError
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.masked_delta import Kernel
from bmt_server.worker.kernels.native import kernel as native
from bmt_server.worker.kernels.native.build import BuildError
from bmt_server.worker.kernels.portable import PortableKernel

# Forces a kernel: "native", the compiled one for the device; "portable"; unset: the fastest.
KERNEL_ENV = "BMT_KERNEL"
# vLLM's own switch: a request's answer does not depend on the rest of its batch.
BATCH_INVARIANT_ENV = "VLLM_BATCH_INVARIANT"

logger = logging.getLogger("vllm.bmt_server")


class KernelError(SettingsError):
    """The kernel that BMT_KERNEL names cannot run here; the message gives the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelLimits:
    """Sizes for a kernel that reserves memory when it is built."""

    memory_bytes: int  # for masks, bytes
    max_tokens: int = 8192  # of one step, padding included
    graph_tokens: int = 0  # of one step that a CUDA graph may run; 0: no graphs


def choose_kernel(
    device: torch.device, report: Callable[[str], None] | None = None
) -> type[Kernel]:
    """Return the kernel class for gates on `device`; compile the native kernel if needed.

    report: receives one line per compilation, and one with the reason if the portable kernel is
    chosen; the default logs them. Raises KernelError if BMT_KERNEL names a kernel that cannot run
    here, SettingsError if it has an unknown value.
    """
    forced = _forced()
    if forced == "portable":
        return PortableKernel
    reason = "it needs CUDA and the triton package"
    if device.type == "cuda" and supports_cuda_graphs():
        return _triton_kernel()
    if device.type == "cpu":
        try:
            native.load(report or logger.info)
            return native.NativeKernel
        except BuildError as error:
            reason = str(error)
    if forced:
        raise KernelError(
            f"{KERNEL_ENV}=native, and the kernel for {device.type} is missing: {reason}"
        )
    (report or logger.warning)(
        f"warning: masks run on the portable kernel, several times slower: {reason}"
    )
    return PortableKernel


def make_kernel(gates: Sequence[GateLayer], limits: KernelLimits) -> Kernel:
    """Build the kernel for these gates. Raises as `choose_kernel` does."""
    device, dtype = gates[0].device, gates[0].base.dtype
    if device.type == "cuda" and supports_cuda_graphs():
        from bmt_server.worker.kernels.triton.kernel import TritonKernel

        return TritonKernel(
            gates,
            memory_bytes=limits.memory_bytes,
            max_tokens=limits.max_tokens,
            graph_tokens=limits.graph_tokens,
            group=os.environ.get(BATCH_INVARIANT_ENV, "0") == "0",
        )
    if device.type == "cpu" and dtype not in native.DTYPES and _forced() != "portable":
        if _forced():
            raise KernelError(
                f"{KERNEL_ENV}=native, and the native kernel computes in bfloat16 and float32, not "
                f"{dtype}; unset {KERNEL_ENV} or serve with one of these dtypes"
            )
        logger.warning(
            "Masks run on the portable kernel: the compiled one does not support %s.", dtype
        )
        return PortableKernel(gates)
    return choose_kernel(device)(gates)


def supports_cuda_graphs() -> bool:
    """True if CUDA graphs may capture the kernel for CUDA devices.

    Depends on the installed packages and BMT_KERNEL, and initializes no device, so a server can
    call it before its engine starts.
    """
    if _forced() == "portable":
        return False
    return torch.version.cuda is not None and find_spec("triton") is not None


def _forced() -> str:
    forced = os.environ.get(KERNEL_ENV, "")
    if forced not in ("", "native", "portable"):
        raise SettingsError(f"{KERNEL_ENV} is {forced!r}; it must be native, portable, or unset")
    return forced


def _triton_kernel() -> type[Kernel]:
    # The triton package is an optional dependency: only CUDA builds of torch require it.
    from bmt_server.worker.kernels.triton.kernel import TritonKernel

    return TritonKernel
