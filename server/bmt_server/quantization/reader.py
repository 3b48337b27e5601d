"""Weights of a checkpoint's gates, read from its files a gate at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from bmt_core.checkpoint_files import weight_files
from bmt_core.gates.geometry import Types
from bmt_core.gates.rows import Rows
from safetensors import safe_open

from bmt_server.quantization.codes import quantized_gates
from bmt_server.quantization.dequantize import dequantize


class GateReader:
    """Weights of gates in float32, dequantized if the checkpoint is.

    Weights stored as such are read as they are.
    """

    def __init__(self, folder: str | Path, *, quantized: bool, types: Types | None = None) -> None:
        """quantized: the gates are codes; types: see `codes.quantized_gates`, which raises."""
        self._gates = quantized_gates(folder, types) if quantized else {}
        self._file_of: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._file_of |= dict.fromkeys(file.keys(), path)

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """Rows of the gate that masks call `name`, float32 [end - first, K]."""
        gate = self._gates.get(name)
        if gate is not None:
            parts = {part: self.tensor(f"{gate.module}.{part}") for part in gate.parts}
            return dequantize(gate, parts)[first:end]
        rows = Rows.parse(name)
        if rows is None:
            return self.tensor(name)[first:end].float()
        return self.tensor(rows.tensor)[rows.first + first : rows.first + end].float()

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the checkpoint, as it is stored."""
        with safe_open(self._file_of[name], framework="pt") as file:
            found: torch.Tensor = file.get_tensor(name)
        return found
