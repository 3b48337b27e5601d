"""Requests and tokens by tenant, key, mask and day: route, flow and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._errors import ProtocolError
from .._models import Model, _require_text
from .._retry import RetryPolicy, exchange
from .._transport import Flow, Request, parse_json

GROUPS = ("tenant", "key", "mask", "day")


@dataclass(frozen=True, kw_only=True)
class UsageRow(Model):
    """Requests and tokens of one group. None in `tenant`, `key` and `day`: all of them."""

    tenant: str | None = None
    key: str | None = None  # id
    mask: str | None = None  # None: the base model, if grouped by mask
    day: str | None = None  # ISO 8601, UTC
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Usage(Model):
    """Requests and tokens from `start` to `end`, both included."""

    tenant: str  # `*`: all
    start: str  # ISO 8601, UTC
    end: str
    data: tuple[UsageRow, ...] = ()
    total: UsageRow = field(default_factory=UsageRow)

    def __post_init__(self) -> None:
        _require_text(self, "tenant", "start", "end")
        if not isinstance(self.data, list | tuple):
            raise ProtocolError(f"the usage has no `data` list, but {self.data!r:.80}")
        object.__setattr__(self, "data", tuple(map(_row, self.data)))
        object.__setattr__(self, "total", _row(self.total))

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return {**super().as_dict(), "data": [row.as_dict() for row in self.data]}


def show(
    policy: RetryPolicy,
    start: str | None,
    end: str | None,
    group_by: Sequence[str],
    tenant: str | None,
) -> Flow[Usage]:
    groups = group_by if isinstance(group_by, str) else ",".join(group_by)
    given = {"start": start, "end": end, "group_by": groups, "tenant": tenant}
    params = tuple((name, str(value)) for name, value in given.items() if value is not None)
    response = yield from exchange(Request("GET", "/v1/usage", params=params), policy)
    return Usage.from_json(parse_json(response))


def _row(raw: Any) -> UsageRow:
    return raw if isinstance(raw, UsageRow) else UsageRow.from_json(raw)
