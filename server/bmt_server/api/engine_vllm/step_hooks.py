"""Hook into vLLM's record of each step: a heartbeat, and the names of waiting masks.

vLLM's own `vllm:lora_requests_info` lists adapters with requests in flight, so an idle resident
adapter would look cold to a router, which would send its requests elsewhere; with several API
processes its series also never end. This server therefore exports that metric itself
(`api/metrics/gateway.py`); of vLLM's record it needs only the waiting adapters.
"""

from __future__ import annotations

import os
import time
from itertools import islice
from typing import Any

from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.ipc.stats_files import MAX_NAMED, StatsWriter, WaitingMasks
from bmt_server.settings import Settings


class StepRecorder:
    """Records the steps that vLLM reports to this API process."""

    def __init__(self, settings: Settings, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._waiting = WaitingMasks()
        self._writer: StatsWriter | None = None
        if settings.stats_dir:
            self._writer = StatsWriter(settings.stats_dir, os.getpid(), lambda: self._waiting)

    def record(self, scheduler_stats: Any) -> None:
        """Record the end of a step.

        scheduler_stats: vLLM's SchedulerStats; None if the engine sent them to another API process.
        """
        self._heartbeat.beat()
        if scheduler_stats is None:
            return
        names = list(islice(scheduler_stats.waiting_lora_adapters, MAX_NAMED))
        self._waiting = WaitingMasks(time.time(), names)
        if self._writer is not None:
            self._writer.changed()
