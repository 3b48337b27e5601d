"""In-place masking: W[P] = 0, and back. Exactly what serving the masked checkpoint computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.resident_mask import ResidentMask

Switch = Callable[[ResidentMask | None, ResidentMask | None], None]


class InPlace:
    """Owns the live gate weights: they hold the base, or the base under exactly one mask.

    A revert writes back the values gathered from the base, bit for bit, so any number of switches
    leaves the weights as they were.
    """

    def __init__(self, gates: Sequence[GateLayer], switch: Switch) -> None:
        """switch: how a kernel changes the weights, see `ops.Kernel.switch`."""
        self.gates = gates
        self._switch = switch
        self.current: ResidentMask | None = None
        self.switches = 0
        self.seconds = 0.0

    @property
    def possible(self) -> bool:
        """True where every gate's weight is the one that the matrix product reads."""
        return all(gate.live is not None for gate in self.gates)

    def switch(self, mask: ResidentMask | None) -> None:
        """Make `mask` (None: the base) the one in the weights. No-op if it already is."""
        if mask is self.current or (
            mask is not None and self.current is not None and mask.digest == self.current.digest
        ):
            return
        start = time.perf_counter()
        self._switch(self.current, mask)
        self.current = mask
        self.switches += 1
        self.seconds += time.perf_counter() - start
