"""In-place masking: W[P] = 0 and back, with the same numbers as the masked checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.resident_mask import LayerMask, ResidentMask
from bmt_server.worker.switch_timer import SwitchTimer, make_timer

Switch = Callable[[ResidentMask | None, ResidentMask | None], None]


class LiveWeights:
    """The live gate weights, which hold the base or the base under exactly one mask.

    A switch writes back the values that were read from the base, bit for bit, so any number of
    switches leaves the weights unchanged.
    """

    def __init__(
        self, gates: Sequence[GateLayer], switch: Switch, timer: SwitchTimer | None = None
    ) -> None:
        """switch: changes the weights, see `kernels.masked_delta.Kernel.switch`; timer: None for
        the one of the gates' device."""
        self.gates = gates
        self._switch = switch
        self.current: ResidentMask | None = None
        self.switches = 0
        self._timer = timer or make_timer(gates[0].device)

    @property
    def seconds(self) -> float:
        """Time of all switches that have ended: on a GPU that of the device, else of the host."""
        return self._timer.seconds

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
        with self._timer.measure():
            self._switch(self.current, mask)
        self.current = mask
        self.switches += 1

    def forget(self) -> bool:
        """Forget the mask in the weights, which someone else may have replaced since it came.

        A layer whose positions still hold zeros gets its base values back; values of the former
        base are written nowhere else. Returns True if some layer was replaced. Waits for the
        device.
        """
        mask, self.current = self.current, None
        if mask is None:
            return False
        replaced = False
        for gate, layer in zip(self.gates, mask.layers, strict=True):
            assert gate.live is not None
            replaced |= not _restore(gate.live, layer)
        return replaced


def _restore(live: torch.Tensor, layer: LayerMask) -> bool:
    """Write a layer's values into live [R, K] if all of its zeros are there. False if not."""
    if not layer.cols.numel():
        return True
    at = (layer.rows(), layer.cols.long())
    if bool(live[at].count_nonzero()):
        return False
    live.index_put_(at, layer.values)
    return True
