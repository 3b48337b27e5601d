"""In-place masking: W[P] = 0 and back, with the same numbers as the masked checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.resident_mask import ResidentMask

Switch = Callable[[ResidentMask | None, ResidentMask | None], None]


class LiveWeights:
    """The live gate weights, which hold the base or the base under exactly one mask.

    A switch writes back the values that were read from the base, bit for bit, so any number of
    switches leaves the weights unchanged. seconds: host time of all switches.
    """

    def __init__(self, gates: Sequence[GateLayer], switch: Switch) -> None:
        """switch: changes the weights, see `kernels.masked_delta.Kernel.switch`."""
        self.gates = gates
        self._switch = switch
        self.current: ResidentMask | None = None
        self.switches = 0
        self.seconds = 0.0

    @property
    def available(self) -> bool:
        """True if the matrix product reads every gate's weight tensor itself."""
        return all(gate.live is not None for gate in self.gates)

    def switch(self, mask: ResidentMask | None) -> None:
        """Put `mask` into the weights (None: restore the base). No-op if it is there already."""
        if mask is self.current or (
            mask is not None and self.current is not None and mask.digest == self.current.digest
        ):
            return
        start = time.perf_counter()
        self._switch(self.current, mask)
        self.current = mask
        self.switches += 1
        self.seconds += time.perf_counter() - start
