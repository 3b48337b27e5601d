"""Record of a piece of work in the registry, and the lease of whoever does it."""

from __future__ import annotations

import secrets
from typing import Self

from pydantic import BaseModel, ConfigDict, Field


class Closed(BaseModel):
    """JSON of a closed form: whoever can write to the registry adds nothing to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Lease(Closed):
    """A worker's right to do a piece of work. Times are of the registry's clock, ms since 1970.

    since_ms: the time up to which the worker's seconds are counted for the tenant.
    """

    token: str = Field(pattern=r"^[0-9a-f]{32}$")
    worker: str = Field(max_length=128)
    until_ms: int
    since_ms: int


class WorkRecord(Closed):
    """One piece of work of a tenant. base: fingerprint of the weights that it needs.

    created_ms: None in records of former builds.
    """

    id: str
    tenant: str = Field(min_length=1, max_length=128)
    base: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: int
    created_ms: int | None = None
    lease: Lease | None = None

    @property
    def path(self) -> str:
        """Member of the queue."""
        return f"{self.tenant}/{self.id}"

    @property
    def queued_at(self) -> str:
        """Place in the queue: the time of creation, in seconds and parts of them."""
        ms = self.created_at * 1000 if self.created_ms is None else self.created_ms
        return f"{ms / 1000:.3f}"

    @property
    def waits(self) -> bool:
        """True in the queue, without a lease."""
        raise NotImplementedError

    @property
    def ended(self) -> bool:
        raise NotImplementedError

    def extended(self, items: int) -> Self:
        """The record once its list has so many further items."""
        raise NotImplementedError

    def spent_ms(self, now_ms: int) -> int:
        """Worker time since it was counted last; of a lost lease until its end."""
        if self.lease is None:
            return 0
        return max(0, min(now_ms, self.lease.until_ms) - self.lease.since_ms)


def new_token() -> str:
    """A random token of a lease."""
    return secrets.token_hex(16)
