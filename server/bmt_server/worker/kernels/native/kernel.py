"""The masked delta on the CPU in C++ compiled for the host: Python interface of `bmt.cpp`.

Calls of the op do not run through Python: the library registers itself as the op's CPU
implementation, so an idle layer costs one call through torch's dispatcher and one look at the plan.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch

from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.costs import NATIVE
from bmt_server.worker.kernels.native.build import BuildError, library
from bmt_server.worker.resident_mask import LayerMask, ResidentMask

DTYPES = (torch.bfloat16, torch.float32)


class NativeKernel:
    """`masked_delta.Kernel` for gates in bf16 or fp32 on the CPU."""

    name = "native"
    description = "C++ compiled for this CPU"
    costs = NATIVE

    def __init__(self, gates: Sequence[GateLayer]) -> None:
        self._lib = load()
        self._gates = gates
        self._element = gates[0].base.element_size()
        shapes = np.array([g.shape for g in gates], np.int64)
        self._model = self._lib.bmt_model(self._element, len(gates), _address(shapes))
        if not self._model:
            raise MemoryError("the mask kernel's state could not be allocated")
        self._first = -1
        self._tables: weakref.WeakKeyDictionary[ResidentMask, np.ndarray] = (
            weakref.WeakKeyDictionary()
        )
        self._planned: list[ResidentMask] = []
        weakref.finalize(self, self._lib.bmt_free, self._model)

    def bind(self, first: int) -> None:
        self._first = first
        self._lib.bmt_bind(self._model, first)

    def plan(self, token_masks: np.ndarray, masks: Mapping[int, ResidentMask]) -> None:
        ids = sorted(masks)
        self._planned = [masks[a] for a in ids]
        tables = np.array([_address(self._table(m)) for m in self._planned], np.int64)
        adapters = np.array(ids, np.int64)
        tokens = np.ascontiguousarray(token_masks, np.int64)
        unknown = self._lib.bmt_plan(
            self._model,
            _address(tokens),
            tokens.size,
            _address(adapters),
            _address(tables),
            len(ids),
        )
        if unknown:
            raise KeyError(unknown)

    def idle(self) -> None:
        self._lib.bmt_idle(self._model)
        self._planned = []

    def run(self, layer: int, y: torch.Tensor, x: torch.Tensor) -> None:
        torch.ops.bmt.masked_delta(y, x, self._first + layer)

    def to_device(self, mask: ResidentMask, *, allow_overflow: bool = False) -> ResidentMask:
        table = self._table(mask)
        for gate, row in zip(self._gates, table, strict=True):
            self._lib.bmt_read_values(
                self._element,
                _address(row),
                gate.shape[0],
                gate.base.data_ptr(),
                gate.base.stride(0),
            )
        return mask

    def switch(self, old: ResidentMask | None, new: ResidentMask | None) -> None:
        weights = np.empty((3, len(self._gates)), np.int64)
        for i, gate in enumerate(self._gates):
            assert gate.live is not None
            weights[:, i] = gate.shape[0], gate.live.data_ptr(), gate.live.stride(0)
        self._lib.bmt_switch(
            self._element,
            len(self._gates),
            None if old is None else _address(self._table(old)),
            None if new is None else _address(self._table(new)),
            *(_address(row) for row in weights),
        )

    def _table(self, mask: ResidentMask) -> np.ndarray:
        """int64 [layers, 5]: `LayerTable` of mask.h for each layer, built once per mask."""
        table = self._tables.get(mask)
        if table is None:
            table = np.array([_row(layer) for layer in mask.layers], np.int64)
            self._tables[mask] = table
        return table


def _row(layer: LayerMask) -> tuple[int, ...]:
    wide = (layer.row_end.dtype == torch.int32) | (layer.cols.dtype == torch.int32) << 1
    arrays = (layer.block_start, layer.row_end, layer.cols, layer.values)
    return (*(a.data_ptr() for a in arrays), int(wide))


def _address(array: np.ndarray) -> int:
    address: int = array.ctypes.data
    return address


_ADDRESS, _INT = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "bmt_model": (_ADDRESS, [_INT, _INT, _ADDRESS]),
    "bmt_bind": (None, [_ADDRESS, _INT]),
    "bmt_free": (None, [_ADDRESS]),
    "bmt_plan": (_INT, [_ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT]),
    "bmt_idle": (None, [_ADDRESS]),
    "bmt_read_values": (None, [_INT, _ADDRESS, _INT, _ADDRESS, _INT]),
    "bmt_switch": (None, [_INT, _INT, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS]),
}


@cache
def _open(path: str) -> ctypes.CDLL:
    lib = ctypes.CDLL(path)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def load(report: Callable[[str], None] = lambda text: None) -> ctypes.CDLL:
    """Return the compiled library, loaded once per process. Raises BuildError.

    report: see `build.library`.
    """
    path = library(report)
    try:
        return _open(str(path))
    except OSError as error:
        raise BuildError(
            f"{path} cannot be loaded ({error}); delete it to compile it again"
        ) from None
