"""Observer of finished engine calls: metrics of the process, usage and budgets of their callers."""

from __future__ import annotations

from typing import Any

from bmt_server.api.metrics.counters import Metrics
from bmt_server.api.usage.budgets import Budgets
from bmt_server.api.usage.caller import Caller
from bmt_server.api.usage.counter import UsageCounter
from bmt_server.registry.usage.counts import Counts


class UsageMeter:
    """Takes each call of the engine once; implements `RequestObserver`."""

    def __init__(self, metrics: Metrics, usage: UsageCounter, budgets: Budgets) -> None:
        self._metrics, self._usage, self._budgets = metrics, usage, budgets

    def request_finished(self, mask: str | None, *, caller: Caller | None, **figures: Any) -> None:
        """Count a call of the engine. caller: None for the server's own calls."""
        self._metrics.request_finished(mask, **figures)
        tokens = Counts(
            prompt_tokens=figures["prompt_tokens"],
            cached_tokens=figures["cached_tokens"],
            completion_tokens=figures["completion_tokens"],
        )
        if caller is not None and tokens != Counts():
            self._usage.add(caller, tokens)
            taken = tokens.prompt_tokens + tokens.completion_tokens
            self._budgets.charge(caller.key_id, caller.tenant, taken)
