"""The caller of a request: key, tenant and mask that its tokens are counted under.

The middleware sets the caller for everything that runs on behalf of a request, and each call of the
engine takes it at its start (`engine_vllm/request_hooks.py`): a call may end in another task, long
after its request.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from bmt_server.api.canary.arm import Arm


@dataclass(frozen=True, slots=True)
class Caller:
    """Owner of a request's usage. mask: its name without the version; empty: the base model.

    arm: of an alias that is split. background: no client waits for it, as for a batch's line.
    """

    key_id: str
    tenant: str
    mask: str = ""
    arm: Arm | None = None
    background: bool = False


_CALLER: ContextVar[Caller | None] = ContextVar("bmt_caller", default=None)


def attribute(caller: Caller) -> None:
    """Count the engine's work of the current task, and of tasks that it starts, for a caller."""
    _CALLER.set(caller)


def current_caller() -> Caller | None:
    """The caller of the current task; None outside of requests."""
    return _CALLER.get()
