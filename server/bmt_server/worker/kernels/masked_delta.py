"""The masked delta as a registered torch op, and the protocol of the kernels that compute it.

Semantics of `bmt::masked_delta(Tensor(a!) y, Tensor x, int handle) -> ()`: for every token t with
a mask, y[t, i] -= sum over the zeros (i, j) of mask(t) of x[t, j] * W[i, j], for i < R, with
products and sums in fp32 and one rounding into y. y is [T, N] and x [T, K] in the model's dtype.

Legend as in `layers.py`: T tokens, K columns in, N columns out, R gate rows, n zeros of a mask.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from bmt_server.settings import SettingsError
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.native import kernel as native
from bmt_server.worker.kernels.native.build import BuildError
from bmt_server.worker.kernels.portable import PortableKernel
from bmt_server.worker.resident_mask import ResidentMask
from bmt_server.worker.switch_policy import Costs

if TYPE_CHECKING:
    from bmt_server.worker.kernels.triton.kernel import TritonKernel


# Which kernel runs: "native", compiled for the device; "portable"; unset, the best there is.
ENV = "BMT_KERNEL"

logger = logging.getLogger("vllm.bmt_server")


class KernelError(SettingsError):
    """The kernel that BMT_KERNEL asks for is not to be had; the message says why."""


class Kernel(Protocol):
    """What computes with masks on one model's gates; made with the gates, used by one thread.

    name: short, as in metrics and logs; note: one line on why it is this one; costs: what mode
    `auto` reckons with.
    """

    name: str
    note: str
    costs: Costs

    def __init__(self, gates: Sequence[GateLayer]) -> None: ...

    def bind(self, first: int) -> None:
        """Told once: `first` is the op's handle of layer 0, and the other layers' follow it."""

    def plan(self, token_masks: np.ndarray, masks: Mapping[int, ResidentMask]) -> None:
        """Arrange the coming steps: token_masks is int64 [T] of adapter ids, 0 = base.

        Holds until the next plan() or idle(); the masks stay alive as long. Tokens of the base
        alone: a step that CUDA graphs may be captured from, for steps with masks to replay.
        """

    def idle(self) -> None:
        """The coming steps use no mask: run() leaves y alone, at no cost that can be measured."""

    def run(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        """The op's semantics for one layer: y [T, N] is changed in place, x [T, K] is read."""

    def place(self, mask: ResidentMask, *, beyond: bool = False) -> ResidentMask:
        """Bring a mask that was laid out on the host to where this kernel reads it.

        Its values are filled from the gates, which must hold the base then. Memory is the mask's
        until the last reference to the result is gone. Raises NoRoomError where a bound is
        reached, unless `beyond` it is allowed: a running step needs the mask.
        """

    def switch(self, old: ResidentMask | None, new: ResidentMask | None) -> None:
        """Live gate weights that hold `old` hold `new` instead; None is the base."""


# A torch op carries integers, not objects: a handle is a place in this list, one for each gate
# layer of each model in this process.
_HANDLES: list[tuple[Kernel, int]] = []


def register(kernel: Kernel, layers: int) -> list[int]:
    """One op handle for each of a model's gate layers, in order."""
    first = len(_HANDLES)
    _HANDLES.extend((kernel, layer) for layer in range(layers))
    kernel.bind(first)
    return list(range(first, len(_HANDLES)))


def choose(device: torch.device, tell: Callable[[str], None] | None = None) -> type[Kernel]:
    """The kernel that serves gates on `device`, compiled where need be; BMT_KERNEL forces one.

    tell: told in a line each that it compiles, and why it is the portable one; logged by default.
    Raises KernelError where the forced one is not to be had, SettingsError for other values.
    """
    forced = _forced()
    if forced == "portable":
        return PortableKernel
    reason = "it needs CUDA and the triton package"
    if device.type == "cuda" and graphs():
        return _triton()
    if device.type == "cpu":
        try:
            native.load(tell or logger.info)
            return native.NativeKernel
        except BuildError as error:
            reason = str(error)
    if forced:
        raise KernelError(f"{ENV}=native, and the kernel for {device.type} is missing: {reason}")
    (tell or logger.warning)(
        f"warning: masks run on the portable kernel, several times slower: {reason}"
    )
    return PortableKernel


def _forced() -> str:
    forced = os.environ.get(ENV, "")
    if forced not in ("", "native", "portable"):
        raise SettingsError(f"{ENV} is {forced!r}; it must be native, portable, or unset")
    return forced


def graphs() -> bool:
    """True where the kernel for CUDA devices may be captured in CUDA graphs.

    Tells of the installed packages alone and touches no device: servers ask before they start.
    """
    if _forced() == "portable":
        return False
    return torch.version.cuda is not None and find_spec("triton") is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a kernel that reserves memory at its start must know."""

    memory_bytes: int  # of masks, bytes
    max_tokens: int = 8192  # of one step, padding included
    graph_tokens: int = 0  # of one step that a CUDA graph may run; 0: no graphs


def make(gates: Sequence[GateLayer], bounds: Bounds) -> Kernel:
    """The kernel for these gates, made. Raises as `choose` does."""
    device, dtype = gates[0].device, gates[0].base.dtype
    if device.type == "cuda" and graphs():
        return _triton()(
            gates,
            memory_bytes=bounds.memory_bytes,
            max_tokens=bounds.max_tokens,
            graph_tokens=bounds.graph_tokens,
        )
    if device.type == "cpu" and dtype not in native.DTYPES and _forced() != "portable":
        if _forced():
            raise KernelError(
                f"{ENV}=native, and that computes in bfloat16 and float32, not {dtype}"
            )
        logger.warning(
            "Masks run on the portable kernel: the compiled one does not know %s.", dtype
        )
        return PortableKernel(gates)
    return choose(device)(gates)


def _triton() -> type[TritonKernel]:
    # Here, since elsewhere there may be no triton to import.
    from bmt_server.worker.kernels.triton.kernel import TritonKernel

    return TritonKernel


def _masked_delta(y: torch.Tensor, x: torch.Tensor, handle: int) -> None:
    kernel, layer = _HANDLES[handle]
    kernel.run(layer, y, x)


def _masked_delta_fake(y: torch.Tensor, x: torch.Tensor, handle: int) -> None:
    return None


# Registered through Library rather than custom_op: the latter's wrapper costs more than an idle
# step's whole work, and an idle step runs it once a layer.
_LIBRARY = torch.library.Library("bmt", "FRAGMENT")
_LIBRARY.define("masked_delta(Tensor(a!) y, Tensor x, int handle) -> ()")
_LIBRARY.impl("masked_delta", _masked_delta, "CompositeExplicitAutograd")
# Where the native kernel is loaded, its CPU form of the op is called first, and sends handles
# that other kernels serve here.
_LIBRARY.define("masked_delta_elsewhere(Tensor(a!) y, Tensor x, int handle) -> ()")
_LIBRARY.impl("masked_delta_elsewhere", _masked_delta, "CompositeExplicitAutograd")
torch.library.register_fake("bmt::masked_delta", _masked_delta_fake, lib=_LIBRARY)
