"""Faults of a request that only the engine finds, handed to the response of that request.

vLLM's routes answer an exception of an engine call in four ways: by a status, by an event of a
stream that began with 200, by an event without a status, or by a broken connection. The hooks of
the engine's calls note the fault here (`engine_vllm/request_hooks.py`), and the response of the
same request is made of it, whatever the route does.
"""

from __future__ import annotations

from contextvars import ContextVar

from bmt_server.errors import ApiError


class Refusal:
    """The fault of one request, or None."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: ApiError | None = None


_CURRENT: ContextVar[Refusal | None] = ContextVar("bmt_refusal", default=None)


def watch() -> Refusal:
    """Holder of the fault that the current task, or a task that it starts, notes."""
    refusal = Refusal()
    _CURRENT.set(refusal)
    return refusal


def note(error: ApiError) -> None:
    """Keep the first fault of the current task's request; outside of requests, do nothing."""
    refusal = _CURRENT.get()
    if refusal is not None and refusal.error is None:
        refusal.error = error
