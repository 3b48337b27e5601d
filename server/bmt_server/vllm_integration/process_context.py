"""The one object that the hooks of a process share, because vLLM constructs each of them itself.

vLLM finds the plugin, the stat logger and the endpoint plugin by entry point or by class, one after
the other, and passes none of them to another. In an API process they meet here:

    heartbeat     the stat logger records a step, the engine client asks for silence
    engine_died   the endpoint plugin sets it when the app ends, `bmt-server serve` reads it after
                  vLLM's server has returned, because vLLM then exits as if it had been stopped
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from threading import Event

from bmt_server.api.engine_vllm.heartbeat import Pulse


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """Objects with the lifetime of one process; never replaced."""

    heartbeat: Pulse
    engine_died: Event


@cache
def process_context() -> ProcessContext:
    """The context of this process, made at the first call."""
    return ProcessContext(Pulse(), Event())
