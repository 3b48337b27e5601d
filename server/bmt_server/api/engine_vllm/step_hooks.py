"""What vLLM records after each step, and what this server makes of it.

vLLM's `vllm:lora_requests_info` lists adapters with requests in flight, so an idle resident one
would look cold to a router and its requests would be sent elsewhere; and with several API
processes none of its series ever ends. The server tells that metric itself
(`api/router_metrics.py`); of vLLM's it needs who waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from bmt_server.ipc import waiting_masks
from bmt_server.ipc.stats_files import Writer
from bmt_server.ipc.waiting_masks import Waiting
from bmt_server.ipc.worker_stats import MAX_NAMED
from bmt_server.settings import Settings


def _nobody() -> None:
    """No plugin listens."""


# Called after every step that this process hears of. Set by the plugin.
stepped: Callable[[], None] = _nobody


class Steps:
    """Hears of this process's steps and tells others of it who waits."""

    def __init__(self, settings: Settings) -> None:
        self._waiting = Waiting()
        self._changed = _nobody
        if settings.stats_dir:
            path = waiting_masks.path_of(settings.stats_dir, os.getpid())
            self._changed = Writer(path, lambda: self._waiting).changed

    def record(self, scheduler_stats: Any) -> None:
        """A step has ended. scheduler_stats: vLLM's, None where another process is told them."""
        stepped()
        if scheduler_stats is None:
            return
        names = list(islice(scheduler_stats.waiting_lora_adapters, MAX_NAMED))
        self._waiting = Waiting(time.time(), names)
        self._changed()
