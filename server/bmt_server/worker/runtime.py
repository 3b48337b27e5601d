"""One worker's masks at work: chooses per step between in place, corrected and base."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from bmt_server.settings import MaskMode
from bmt_server.wire import Layout
from bmt_server.worker import ops
from bmt_server.worker.in_place import InPlace
from bmt_server.worker.layers import GateLayer
from bmt_server.worker.store import MaskStore
from bmt_server.worker_stats import WorkerStats

StepKind = Literal["base", "in_place", "corrected"]


class MixedStepError(RuntimeError):
    """`scatter` mode was given a step with tokens of several masks; its scheduler must not."""


class MaskRuntime:
    """Everything one worker knows of masks. Called from the worker's one thread.

    kernel: None takes the one that `ops.choose` names for the gates' device.
    mode: `scatter` always in place; `delta` never; `auto` in place where the weights are live and
    one mask owns the step, corrected otherwise.
    """

    def __init__(
        self,
        gates: Sequence[GateLayer],
        mode: MaskMode,
        capacity_bytes: int,
        stats: WorkerStats | None = None,
        kernel: Callable[[Sequence[GateLayer]], ops.Kernel] | None = None,
    ) -> None:
        self.gates = gates
        if kernel is None:
            self.kernel = ops.make(gates, ops.Bounds(memory_bytes=capacity_bytes))
        else:
            self.kernel = kernel(gates)
        self.store = MaskStore(gates, capacity_bytes, self.kernel.place)
        self.in_place = InPlace(gates, self.kernel.switch)
        if mode == "scatter" and not self.in_place.possible:
            raise ValueError(
                "mask mode 'scatter' needs live weights, and this backend repacks them"
            )
        self.mode: MaskMode = "delta" if mode == "auto" and not self.in_place.possible else mode
        self.stats = stats or WorkerStats()
        self.stats.mode, self.stats.capacity_bytes = self.mode, capacity_bytes
        self.stats.kernel = self.kernel.name
        self.changed: Callable[[], None] = lambda: None
        self._names: dict[int, str] = {}
        # The tokens that the kernel's plan is for; None where it has none.
        self._planned: bytes | None = None
        # Digests of the last step's masks: the coming one likely uses them too.
        self._in_use: set[str] = set()

    def handles(self) -> list[int]:
        """One op handle per gate layer, in order."""
        return ops.register(self.kernel, len(self.gates))

    def add(self, adapter: int, name: str, layout: Layout, keep: Sequence[int] = ()) -> None:
        """Make a mask resident under `adapter`. Values are read from the base, never masked."""
        start = time.perf_counter()
        if self.mode != "delta":
            # Gathering reads the live weights, where another mask's zeros may stand.
            self.in_place.switch(None)
        self.store.add(adapter, layout, keep=self._digests(keep) | self._in_use)
        self._names[adapter] = name
        self.stats.maps += 1
        self.stats.map_seconds += time.perf_counter() - start
        self._publish()

    def remove(self, adapter: int) -> bool:
        """Forget an adapter id; its mask leaves the weights and memory with the last id."""
        if adapter not in self.store.adapters:
            return False
        digest = self.store.digest(adapter)
        current = self.in_place.current
        if current is not None and current.digest == digest:
            self.in_place.switch(None)
        self._idle()
        self.store.remove(adapter)
        self._names.pop(adapter, None)
        self._publish()
        return True

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
        self.stats.switches = self.in_place.switches
        self.stats.switch_seconds = self.in_place.seconds
        self.changed()
        return kind

    def _prepare(self, token_masks: np.ndarray) -> StepKind:
        adapters = np.unique(token_masks)
        active = [int(a) for a in adapters if a]
        self._in_use = keep = self._digests(active)
        if not active:
            self._idle()
            if self.mode != "delta":
                self.in_place.switch(None)
            return "base"
        if self.mode == "scatter" and len(adapters) > 1:
            raise MixedStepError(f"a step mixes adapters {active[:4]} in mask mode 'scatter'")
        if self.mode != "delta" and len(adapters) == 1:
            self._idle()
            if not self.store.resident(active[0]):
                # An evicted mask is gathered again, which needs the base in the weights.
                self.in_place.switch(None)
            self.in_place.switch(self.store.get(active[0]))
            return "in_place"
        if self.mode != "delta":
            self.in_place.switch(None)
        key = token_masks.tobytes()
        if self._planned != key:
            self.kernel.plan(token_masks, {a: self.store.get(a, keep=keep) for a in active})
            self._planned = key
        return "corrected"

    def _idle(self) -> None:
        if self._planned is not None:
            self.kernel.idle()
            self._planned = None

    def _digests(self, adapters: Sequence[int]) -> set[str]:
        known = self.store.adapters
        return {self.store.digest(a) for a in adapters if a in known}

    def _publish(self) -> None:
        stats, store = self.stats, self.store
        stats.resident_masks, stats.resident_bytes = len(store), store.resident_bytes
        stats.evictions = store.evictions
        stats.resident = [name for adapter, name in self._names.items() if store.resident(adapter)]
        self.changed()
