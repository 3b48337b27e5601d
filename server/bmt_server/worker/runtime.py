"""One worker's masks at work: chooses per step between in place, corrected and base."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from bmt_server.ipc.mask_layout import Layout
from bmt_server.ipc.stats_files import MAX_NAMED, WorkerStats
from bmt_server.settings import MaskMode
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.in_place import InPlace
from bmt_server.worker.kernels import masked_delta
from bmt_server.worker.mask_store import MaskStore
from bmt_server.worker.resident_mask import ResidentMask
from bmt_server.worker.switch_policy import SwitchRule

StepKind = Literal["base", "in_place", "corrected"]


class MixedStepError(RuntimeError):
    """`scatter` mode was given a step with tokens of several masks; its scheduler must not."""


class MaskRuntime:
    """Everything one worker knows of masks. `begin_step` is called by the thread that steps;
    masks come and go by another.

    kernel: None takes the one that `ops.choose` names for the gates' device.
    mode: `scatter` always in place; `delta` never; `auto`, where the weights are live, in place
    once one mask has owned enough steps (`switching.py`), corrected otherwise.
    """

    def __init__(
        self,
        gates: Sequence[GateLayer],
        mode: MaskMode,
        capacity_bytes: int,
        stats: WorkerStats | None = None,
        kernel: Callable[[Sequence[GateLayer]], masked_delta.Kernel] | None = None,
    ) -> None:
        self.gates = gates
        if kernel is None:
            self.kernel = masked_delta.make(gates, masked_delta.Bounds(memory_bytes=capacity_bytes))
        else:
            self.kernel = kernel(gates)
        self.store = MaskStore(gates, capacity_bytes, self.kernel.place)
        self.in_place = InPlace(gates, self.kernel.switch)
        if mode == "scatter" and not self.in_place.possible:
            raise ValueError(
                "mask mode 'scatter' needs live weights, and this backend repacks them"
            )
        self.mode: MaskMode = "delta" if mode == "auto" and not self.in_place.possible else mode
        self.rule = SwitchRule(self.kernel.costs, len(gates))
        self.stats = stats or WorkerStats()
        self.stats.mode, self.stats.capacity_bytes = self.mode, capacity_bytes
        self.stats.kernel = self.kernel.name
        self.changed: Callable[[], None] = lambda: None
        self._names: dict[int, str] = {}
        # The tokens that the kernel's plan is for; None where it has none.
        self._planned: bytes | None = None

    def handles(self) -> list[int]:
        """One op handle per gate layer, in order."""
        return masked_delta.register(self.kernel, len(self.gates))

    def add(self, adapter: int, name: str, layout: Layout) -> None:
        """Make a mask resident under `adapter`. Any thread. Raises MaskStoreError."""
        start = time.perf_counter()
        self.store.add(adapter, layout)
        self._names[adapter] = name
        self.stats.maps += 1
        self.stats.map_seconds += time.perf_counter() - start
        self.changed()

    def remove(self, adapter: int) -> bool:
        """Forget an adapter id; its mask leaves memory with the last id. Any thread.

        No request may run on it. The weights and the kernel's plan are the step's business: until
        the next step they may hold the mask still.
        """
        known = self.store.remove(adapter)
        self._names.pop(adapter, None)
        self.changed()
        return known

    def rehearse(self, tokens: int) -> None:
        """Prepare a forward pass of `tokens` base tokens that a CUDA graph may be captured from.

        What the kernel launches for masks is launched, for steps with masks to replay.
        """
        if self.mode != "delta":
            self.in_place.switch(None)
        self._planned = b""
        self.kernel.plan(np.zeros(tokens, np.int64), {})

    def begin_step(self, token_masks: np.ndarray) -> StepKind:
        """Prepare the coming forward pass; token_masks: int64 [T] of adapter ids, 0 = base."""
        kind = self._prepare(np.ascontiguousarray(token_masks, dtype=np.int64))
        if kind == "base":
            self.stats.steps_base += 1
        elif kind == "in_place":
            self.stats.steps_in_place += 1
        else:
            self.stats.steps_corrected += 1
        if self.mode == "auto":
            self.stats.reason, self.stats.switch_paid = self.rule.reason, self.rule.paid
            self.stats.steps_paying += self.rule.reason == "paying"
        current = self.in_place.current
        self.stats.in_weights = current.digest[:12] if current is not None else ""
        self.stats.switches = self.in_place.switches
        self.stats.switch_seconds = self.in_place.seconds
        self.changed()
        return kind

    def _prepare(self, token_masks: np.ndarray) -> StepKind:
        adapters = np.unique(token_masks)
        active = [int(a) for a in adapters if a]
        # Two ids may stand for equal masks, which then own a step together.
        sole = len(active) == len(adapters) and len({self.store.digest(a) for a in active}) == 1
        if self.mode == "scatter" and active and not sole:
            raise MixedStepError(f"a step mixes adapters {active[:4]} in mask mode 'scatter'")
        if self.mode == "auto" and not sole:
            self.rule.shared("mixed" if active else "base")
        if sole and self.mode != "delta":
            mask = self._placed(active)
            if self.mode == "scatter" or self._owned(mask, len(token_masks)):
                self._idle()
                self.in_place.switch(mask)
                return "in_place"
        if self.mode != "delta":
            self.in_place.switch(None)
        if not active:
            self._idle()
            self.store.use(())
            return "base"
        key = token_masks.tobytes()
        if self._planned != key:
            self.kernel.plan(token_masks, self.store.use(active))
            self._planned = key
        return "corrected"

    def _idle(self) -> None:
        if self._planned is not None:
            self.kernel.idle()
            self._planned = None

    def _placed(self, adapters: Sequence[int]) -> ResidentMask:
        """The one mask that these ids stand for."""
        if not self.store.ready(adapters):
            # Values are read from the live weights, which must be the base's then.
            self.in_place.switch(None)
        return self.store.use(adapters)[adapters[0]]

    def _owned(self, mask: ResidentMask, tokens: int) -> bool:
        current = self.in_place.current
        return self.rule.owned(
            mask.digest, mask.layers.zeros, tokens, current.digest if current else None
        )

    def figures(self) -> WorkerStats:
        """This worker's figures now. Any thread."""
        stats, store = self.stats, self.store
        stats.resident_masks, stats.resident_bytes = len(store), store.resident_bytes
        stats.evictions = store.evictions
        names = (self._names.get(adapter) for adapter in store.recent(MAX_NAMED))
        stats.resident = [name for name in names if name is not None]
        return stats
