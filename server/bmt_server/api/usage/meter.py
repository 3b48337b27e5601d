"""Observer of finished engine calls: metrics of the process, usage and budgets of their callers."""

from __future__ import annotations

from typing import Any

from bmt_server.api.metrics.counters import Metrics
from bmt_server.api.metrics.versions import VersionMetrics
from bmt_server.api.usage.budgets import Budgets
from bmt_server.api.usage.caller import Caller
from bmt_server.api.usage.counter import UsageCounter
from bmt_server.registry.usage.counts import Counts


class UsageMeter:
    """Takes each call of the engine once; implements `RequestObserver`."""

    def __init__(
        self, metrics: Metrics, versions: VersionMetrics, usage: UsageCounter, budgets: Budgets
    ) -> None:
        self._metrics, self._versions = metrics, versions
        self._usage, self._budgets = usage, budgets

    def request_finished(self, mask: str | None, *, caller: Caller | None, **figures: Any) -> None:
        """Count a call of the engine. caller: None for the server's own calls.

        A copy for a shadow counts by its version alone: no user asked for it. The time to first
        token of a batch's line is none of a user's.
        """
        arm = caller.arm if caller is not None else None
        if caller is not None and caller.background:
            figures["ttft_s"] = None
        if arm is not None:
            self._versions.engine_finished(
                arm, figures["prompt_tokens"], figures["completion_tokens"], figures["ttft_s"]
            )
            if arm.role == "shadow":
                return
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
