"""Masks of one worker at run time: each step runs in place, corrected, or on the base weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from bmt_server.ipc.mask_layout import Layout
from bmt_server.ipc.stats_files import MAX_NAMED, StatsWriter, WorkerStats
from bmt_server.settings import MaskMode
from bmt_server.worker.gate_layers import GateLayer
from bmt_server.worker.kernels.masked_delta import Kernel, register_layers
from bmt_server.worker.kernels.selection import KernelLimits, make_kernel
from bmt_server.worker.live_weights import LiveWeights
from bmt_server.worker.mask_store import MaskStore
from bmt_server.worker.resident_mask import MaskStoreError, ResidentMask
from bmt_server.worker.switch_policy import SwitchPolicy

StepKind = Literal["base", "in_place", "corrected"]


class MixedStepError(RuntimeError):
    """A step in mode `scatter` has tokens of several masks, which its scheduler must not build."""


class BaseReplacedError(MaskStoreError):
    """The base weights are not those that masks belong to; the message names both and the fix."""


class MaskRuntime:
    """All mask state of one worker.

    `begin_step` and `prepare_capture` run on the step's thread; masks are added and removed by
    other threads.

    mode: `scatter` always runs in place, `delta` never; `auto` runs in place once the corrections
    of one mask have paid for the switches (`switch_policy.py`), and falls back to `delta` if the
    backend has no live weights.
    """

    def __init__(
        self,
        gates: Sequence[GateLayer],
        mode: MaskMode,
        capacity_bytes: int,
        kernel: Kernel | None = None,
        *,
        stats: WorkerStats | None = None,
        stats_dir: str = "",
        on_evict: Callable[[list[int]], None] | None = None,
        all_gates: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """capacity_bytes: bound on resident masks; kernel: None for `make_kernel`'s choice;
        stats_dir: folder for this worker's stats file, empty for none; on_evict and
        all_gates: see `MaskStore`.

        Raises ValueError for mode `scatter` without live weights, and what `make_kernel` raises.
        """
        self.gates = gates
        if kernel is None:
            kernel = make_kernel(gates, KernelLimits(memory_bytes=capacity_bytes))
        self.kernel = kernel
        self.store = MaskStore(gates, capacity_bytes, kernel.to_device, on_evict, all_gates)
        self.live_weights = LiveWeights(gates, kernel.switch)
        if mode == "scatter" and not self.live_weights.available:
            raise ValueError(
                "mask mode 'scatter' needs live weights, and this backend repacks them; use mode "
                "'delta' or 'auto'"
            )
        self.mode: MaskMode = (
            "delta" if mode == "auto" and not self.live_weights.available else mode
        )
        self.policy = SwitchPolicy(kernel.costs, len(gates))
        self.stats = stats or WorkerStats()
        self.stats.mode, self.stats.capacity_bytes = self.mode, capacity_bytes
        self.stats.kernel = kernel.name
        self._names: dict[int, str] = {}
        # Tokens of the kernel's current plan; None if the kernel is idle.
        self._planned: bytes | None = None
        self._changed: Callable[[], None] = lambda: None
        # Writes the statistics at once: whoever admits requests reads `base_error` from them.
        self._publish: Callable[[], None] = lambda: None
        if stats_dir:
            # Last, because the writer's thread calls `collect_stats` at once.
            writer = StatsWriter(stats_dir, self.stats.pid, self.collect_stats)
            self._changed, self._publish = writer.changed, writer.write

    @property
    def corrects(self) -> bool:
        """True while the kernel has a plan: in steps with masks that are not in place."""
        return self._planned is not None

    def handles(self) -> list[int]:
        """Register the gate layers with the op; one handle per layer, in order."""
        return register_layers(self.kernel, len(self.gates))

    def add(self, adapter: int, name: str, layout: Layout) -> None:
        """Make a mask resident under `adapter`. Any thread.

        Raises MaskStoreError; BaseReplacedError while masks are refused.
        """
        self._check_base(name)
        start = time.perf_counter()
        self.store.add(adapter, layout)
        self._names[adapter] = name
        self.stats.maps += 1
        self.stats.map_seconds += time.perf_counter() - start
        self._changed()

    def remove(self, adapter: int) -> bool:
        """Forget an adapter id; its mask leaves memory with the last id. Any thread.

        No request may run on it. The weights and the kernel's plan belong to the step: until the
        next step they may still hold the mask. Returns False if the id is unknown.
        """
        known = self.store.remove(adapter)
        self._names.pop(adapter, None)
        self._changed()
        return known

    def leave_weights(self) -> None:
        """Restore the base in the live weights; nothing of a mask stays planned."""
        self._idle()
        self.live_weights.switch(None)

    def forget_values(self) -> None:
        """Forget all that was read from base weights that are replaced by now.

        Without `leave_weights` before the replacement, masks are refused from here on: the rest of
        the weights cannot be known.
        """
        self._idle()
        if self.live_weights.forget() and not self.stats.base_error:
            self.refuse_masks(
                "the base weights were replaced while a mask was in them; start the server again"
            )
        self.store.forget_values()
        self._changed()

    def refuse_masks(self, reason: str) -> None:
        """Refuse masks from here on; `reason` becomes the message of their errors."""
        self.stats.base_error = reason
        self._publish()

    def accept_masks(self) -> None:
        """End `refuse_masks`."""
        self.stats.base_error = ""
        self._publish()

    def _check_base(self, name: str) -> None:
        if self.stats.base_error:
            raise BaseReplacedError(f"mask {name!r} cannot be used: {self.stats.base_error}")

    def prepare_capture(self, tokens: int) -> None:
        """Prepare a forward pass of `tokens` base tokens that a CUDA graph may be captured from.

        The kernel launches all it launches for masks, so that steps with masks can replay it.
        """
        if self.mode != "delta":
            self.live_weights.switch(None)
        self._planned = b""
        self.kernel.plan(np.zeros(tokens, np.int64), {})

    def begin_step(self, token_masks: np.ndarray) -> StepKind:
        """Prepare the next forward pass; token_masks: int64 [T] of adapter ids, 0 = base.

        Raises MixedStepError, KeyError for an unknown id, and MaskStoreError; BaseReplacedError
        for a mask while masks are refused.
        """
        kind = self._prepare(np.ascontiguousarray(token_masks, dtype=np.int64))
        if kind == "base":
            self.stats.steps_base += 1
        elif kind == "in_place":
            self.stats.steps_in_place += 1
        else:
            self.stats.steps_corrected += 1
        if self.mode == "auto":
            self.stats.reason, self.stats.switch_paid = self.policy.reason, self.policy.paid
            self.stats.steps_paying += self.policy.reason == "paying"
        current = self.live_weights.current
        self.stats.in_weights = current.digest[:12] if current is not None else ""
        self.stats.switches = self.live_weights.switches
        self.stats.switch_seconds = self.live_weights.seconds
        self._changed()
        return kind

    def _prepare(self, token_masks: np.ndarray) -> StepKind:
        adapters = np.unique(token_masks)
        active = [int(a) for a in adapters if a]
        if active:
            self._check_base(self._names.get(active[0], str(active[0])))
        # Two ids may have equal masks, which then form one run.
        sole = len(active) == len(adapters) and len({self.store.digest(a) for a in active}) == 1
        if self.mode == "scatter" and active and not sole:
            raise MixedStepError(
                f"a step mixes adapters {active[:4]} in mask mode 'scatter'; its scheduler must "
                "give each step to one mask"
            )
        if self.mode == "auto" and not sole:
            self.policy.end_run("mixed" if active else "base")
        if sole and self.mode != "delta":
            mask = self._resident(active)
            if self.mode == "scatter" or self._runs_in_place(mask, len(token_masks)):
                self._idle()
                self.live_weights.switch(mask)
                return "in_place"
        if self.mode != "delta":
            self.live_weights.switch(None)
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

    def _resident(self, adapters: Sequence[int]) -> ResidentMask:
        """The mask that all of these ids have."""
        if not self.store.ready(adapters):
            # Its values are read from the live weights, which must hold the base.
            self.live_weights.switch(None)
        return self.store.use(adapters)[adapters[0]]

    def _runs_in_place(self, mask: ResidentMask, tokens: int) -> bool:
        current = self.live_weights.current
        return self.policy.run_in_place(
            mask.digest, mask.layers.zeros, tokens, current.digest if current else None
        )

    def collect_stats(self) -> WorkerStats:
        """Update this worker's stats and return them. Any thread."""
        stats, store = self.stats, self.store
        stats.resident_masks, stats.resident_bytes = len(store), store.resident_bytes
        stats.evictions = store.evictions
        names = (self._names.get(adapter) for adapter in store.recent(MAX_NAMED))
        stats.resident = [name for name in names if name is not None]
        return stats
