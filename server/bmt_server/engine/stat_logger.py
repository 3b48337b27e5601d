"""`vllm:lora_requests_info` with the meaning that routers give it: which masks are resident.

The Gateway API Inference Extension reads three labels (its model server protocol): adapters that
are loaded, adapters that wait, and how many fit. vLLM itself lists adapters with requests in
flight, so an idle resident adapter would look cold and its requests would be sent elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from bmt_server.settings import Settings
from bmt_server.worker_stats import read_all

# Each label value is one time series in Prometheus and one parse in the router: keep it short.
MAX_LISTED = 64
# vLLM records after every step; routers scrape every few seconds.
_INTERVAL_S = 0.5
_published = 0.0


def internal_names(names: Iterable[str]) -> list[str]:
    return list(names)


# Internal names (`math@3f9c…`) to the names that requests carry (`math`, `math:prod`). Set by the
# plugin once the registry is known; until then internal names are told, which requests may use.
public_names: Callable[[Iterable[str]], list[str]] = internal_names


def _nobody() -> None:
    """No plugin listens."""


# Called after every step that vLLM records. Set by the plugin.
stepped: Callable[[], None] = _nobody


def publish(gauge: Any, scheduler_stats: Any, settings: Settings) -> None:
    """Set the gauge to now, under the labels of the present residency; drop the old series."""
    global _published
    stepped()
    now = time.monotonic()
    if now - _published < _INTERVAL_S:
        return
    _published = now
    workers = read_all(settings.stats_dir)
    if not workers:
        return
    first = workers[0]
    resident = public_names(first.resident[-MAX_LISTED:])
    waiting = public_names(scheduler_stats.waiting_lora_adapters)
    gauge.clear()
    gauge.labels(
        max_lora=str(first.fits),
        running_lora_adapters=",".join(resident[:MAX_LISTED]),
        waiting_lora_adapters=",".join(waiting[:MAX_LISTED]),
    ).set_to_current_time()
