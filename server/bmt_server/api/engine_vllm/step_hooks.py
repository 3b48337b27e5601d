"""What vLLM records after each step, and what this server makes of it.

vLLM's `vllm:lora_requests_info` lists adapters with requests in flight, so an idle resident one
would look cold to a router and its requests would be sent elsewhere; and with several API
processes none of its series ever ends. The server tells that metric itself
(`api/router_metrics.py`); of vLLM's it needs who waits.
"""

from __future__ import annotations

import os
import time
from itertools import islice
from typing import Any

from bmt_server.api.engine_vllm.heartbeat import Pulse
from bmt_server.ipc.stats_files import MAX_NAMED, StatsWriter, WaitingMasks
from bmt_server.settings import Settings


class Steps:
    """Records each step of the engine: one heartbeat, and the names of waiting masks."""

    def __init__(self, settings: Settings, heartbeat: Pulse) -> None:
        self._heartbeat = heartbeat
        self._waiting = WaitingMasks()
        self._writer: StatsWriter | None = None
        if settings.stats_dir:
            self._writer = StatsWriter(settings.stats_dir, os.getpid(), lambda: self._waiting)

    def record(self, scheduler_stats: Any) -> None:
        """A step has ended. scheduler_stats: vLLM's, None where another process is told them."""
        self._heartbeat.beat()
        if scheduler_stats is None:
            return
        names = list(islice(scheduler_stats.waiting_lora_adapters, MAX_NAMED))
        self._waiting = WaitingMasks(time.time(), names)
        if self._writer is not None:
            self._writer.changed()
