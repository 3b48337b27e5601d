"""What vLLM records after each step, and what this server makes of it.

vLLM's `vllm:lora_requests_info` lists adapters with requests in flight, so an idle resident one
would look cold to a router and its requests would be sent elsewhere; and with several API
processes none of its series ever ends. The server tells that metric itself
(`api/router_metrics.py`); of vLLM's it needs who waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bmt_server import waiting
from bmt_server.settings import Settings
from bmt_server.worker_stats import MAX_NAMED

# vLLM records after every step; routers scrape every few seconds.
_INTERVAL_S = 0.5
_told = 0.0


def _nobody() -> None:
    """No plugin listens."""


# Called after every step that this process hears of. Set by the plugin.
stepped: Callable[[], None] = _nobody


def record(scheduler_stats: Any, settings: Settings) -> None:
    """A step has ended. scheduler_stats: vLLM's, None where another process is told them."""
    global _told
    stepped()
    now = time.monotonic()
    if scheduler_stats is None or now - _told < _INTERVAL_S:
        return
    _told = now
    waiting.tell(settings.stats_dir, list(scheduler_stats.waiting_lora_adapters)[:MAX_NAMED])
