"""The masked delta, the batched op that corrects a gate's output by each token's mask.

Semantics: y[t, i] -= sum over the zeros (i, j) of mask(t) of x[t, j] * W[i, j]    for i < R

As a torch op: `bmt::masked_delta(Tensor(a!) y, Tensor x, int handle) -> ()`.

    y       [T, N], N >= R, the model's dtype: the layer's output with base weights, W x. Changed in
            place; columns R and above (the up projection of a fused layer) stay as they are.
    x       [T, K], the same dtype: the layer's input.
    handle  the gate layer, from `register_layers`. It stands for W [R, K], the base weight in the
            model's dtype, and for the kernel, whose `plan` gave each token its mask.

Returns nothing. Products and sums are in fp32, and y is rounded to its dtype once per element.
Rows of tokens without a mask keep their bits. If a mask has the zeros P, the result is
x (W ⊙ 1[not P])^T up to rounding, which is the masked model's gate output.

`bmt::masked_delta_of(Tensor(a!) y, Tensor x, LayerHandle handle) -> ()` is the same op, for
compilers that reuse the code of one layer for all: torch makes an opaque handle an input of the
compiled graph, and a literal a part of it. vLLM hides its layers' names likewise
(`utils/torch_utils.py`, `LayerName`).

`reference.py` computes the same in a loop over tokens; tests compare each kernel with it.

Legend as in `gate_layers.py`: T tokens, K input columns, N output columns, R gate rows, n zeros of
one mask in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch._library.opaque_object import get_opaque_type_name, register_opaque_type
from torch._opaque_base import OpaqueBase

from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.costs import KernelCosts
from bmt_server.worker.resident_mask import ResidentMask


class Kernel(Protocol):
    """An implementation of the op for the gates of one model, used by one thread.

    name: short, for metrics and logs; description: one line for logs; costs: input of the switch
    policy in mode `auto`.
    """

    name: str
    description: str
    costs: KernelCosts

    def __init__(self, gates: Sequence[GateLayer]) -> None: ...

    def bind(self, first: int) -> None:
        """Receive the op's handle of layer 0; the other layers' handles follow it. Called once."""

    def plan(self, token_masks: np.ndarray, masks: Mapping[int, ResidentMask]) -> None:
        """Prepare the next steps: token_masks is int64 [T] of adapter ids, 0 = base.

        Holds until the next plan() or idle() and keeps the masks alive until then. A plan with base
        tokens only is a step that CUDA graphs may be captured from, for replay in steps with masks.
        Raises KeyError if a token's id is not in `masks`.
        """

    def idle(self) -> None:
        """Prepare steps without masks: run() leaves y as it is, at no measurable cost."""

    def run(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        """Compute the op for one layer: y [T, N] is changed in place, x [T, K] is read."""

    def to_device(self, mask: ResidentMask, *, allow_overflow: bool = False) -> ResidentMask:
        """Copy a mask from the host to the memory that this kernel reads, and fill its values.

        The values are read from the gates, which must hold the base weights. The memory is in use
        until the last reference to the result ends. Raises NoRoomError if the reserved memory is
        full, unless `allow_overflow`, for a mask that the next step needs.
        """

    def switch(self, old: ResidentMask | None, new: ResidentMask | None) -> None:
        """Turn live gate weights under mask `old` into live gate weights under `new`; None: base.

        W[P(old)] = values(old), then W[P(new)] = 0, in all layers.
        """


# A torch op takes integers, not objects: a handle is an index into this list, which holds one entry
# for each gate layer of each model in this process.
_HANDLES: list[tuple[Kernel, int]] = []


def register_layers(kernel: Kernel, layers: int) -> list[int]:
    """Return one handle of the op for each of a model's gate layers, in order."""
    first = len(_HANDLES)
    _HANDLES.extend((kernel, layer) for layer in range(layers))
    kernel.bind(first)
    return list(range(first, len(_HANDLES)))


class LayerHandle(OpaqueBase):  # type: ignore[misc]
    """A handle as an object that torch.compile does not look into. value: from `register_layers`.

    Equal handles of one process are equal objects to torch, as integers would be.
    """

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerHandle) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __fx_repr__(self) -> tuple[str, dict[str, type]]:
        return f"LayerHandle({self.value})", {"LayerHandle": LayerHandle}


register_opaque_type(LayerHandle, typ="value", hoist=True)


def op_for(device: torch.device, handle: int) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """The op on y and x for one layer, in the form for the device.

    On the CPU that is the form that the native kernel implements without Python; vLLM compiles a
    model there as one graph, which reuses no layer.
    """
    if device.type == "cpu":
        return partial(torch.ops.bmt.masked_delta, handle=handle)
    return partial(torch.ops.bmt.masked_delta_of, handle=LayerHandle(handle))


def _masked_delta(y: torch.Tensor, x: torch.Tensor, handle: int) -> None:
    kernel, layer = _HANDLES[handle]
    kernel.run(layer, y, x)


def _masked_delta_fake(y: torch.Tensor, x: torch.Tensor, handle: int) -> None:
    return None


def _masked_delta_of(y: torch.Tensor, x: torch.Tensor, handle: LayerHandle) -> None:
    _masked_delta(y, x, handle.value)


def _masked_delta_of_fake(y: torch.Tensor, x: torch.Tensor, handle: LayerHandle) -> None:
    return None


# Registered through Library, not custom_op, because custom_op's wrapper costs more than all other
# work of an idle step, which calls the op once per layer.
_LIBRARY = torch.library.Library("bmt", "FRAGMENT")
_LIBRARY.define("masked_delta(Tensor(a!) y, Tensor x, int handle) -> ()")
_LIBRARY.impl("masked_delta", _masked_delta, "CompositeExplicitAutograd")
# If the native kernel is loaded, torch calls its CPU implementation of the op first, and that one
# forwards handles of other kernels to this op.
_LIBRARY.define("masked_delta_elsewhere(Tensor(a!) y, Tensor x, int handle) -> ()")
_LIBRARY.impl("masked_delta_elsewhere", _masked_delta, "CompositeExplicitAutograd")
torch.library.register_fake("bmt::masked_delta", _masked_delta_fake, lib=_LIBRARY)
_OPAQUE = get_opaque_type_name(LayerHandle)
_LIBRARY.define(f"masked_delta_of(Tensor(a!) y, Tensor x, {_OPAQUE} handle) -> ()")
_LIBRARY.impl("masked_delta_of", _masked_delta_of, "CompositeExplicitAutograd")
torch.library.register_fake("bmt::masked_delta_of", _masked_delta_of_fake, lib=_LIBRARY)
