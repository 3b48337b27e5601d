"""The parts of `make bench` and their sections, in the order they run."""

from __future__ import annotations

from benchmarks.harness.section import Section
from benchmarks.suites import (
    alternation,
    cold_speed,
    engine_speed,
    file,
    memory,
    mode_speed,
    swap,
)
from benchmarks.suites.http import growth, starts, turns

SECTIONS: dict[str, dict[str, Section]] = {
    "format": {"file": file.open_and_size},
    "swap": {"switch": swap.switch, "memory": memory.resident, "alternation": alternation.auto},
    "cold": {"arriving": cold_speed.arriving},
    "serve": {
        "compiled": engine_speed.compiled,
        "eager": engine_speed.eager,
        "turns": turns.compare,
        "starts": starts.warm,
        "http": growth.growth,
        "modes": mode_speed.skewed,
    },
}
