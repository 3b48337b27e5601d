"""Process context: the objects that hooks share when vLLM constructs each of them itself.

vLLM creates the plugin, the stat logger and the endpoint plugin of an API process by entry point or
by class, and passes none of them to another. They share:

    heartbeat     the stat logger records each step in it, `VllmEngine` detects hangs by it
    engine_died   the endpoint plugin sets it when the app ends; `bmt-server serve` reads it after
                  vLLM's server has returned, because vLLM returns normally from a dead engine
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from threading import Event

from bmt_server.api.engine_vllm.heartbeat import Heartbeat


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """Objects with the lifetime of one process; never replaced."""

    heartbeat: Heartbeat
    engine_died: Event


@cache
def process_context() -> ProcessContext:
    """The context of this process, made at the first call."""
    return ProcessContext(Heartbeat(), Event())
