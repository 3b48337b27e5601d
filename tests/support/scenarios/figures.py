"""Figures of a scenario: printed, kept in benchmarks/results/latest/operate.json, and compared.

A figure of a smaller size than the one that is kept does not replace it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

KEPT = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "latest" / "operate.json"
SCALE = float(os.environ.get("BMT_OPERATE_SCALE", "1"))


def scaled(full: int, least: int = 1) -> int:
    """A size of the scenario: `full`, times the scale that was asked for."""
    return max(least, round(full * SCALE))


def percentile(seconds: Sequence[float], share: float) -> float:
    """NaN where there is nothing."""
    return float(np.percentile(seconds, share)) if len(seconds) else float("nan")


class Figures:
    """Figures of one scenario. `end` raises where one is beyond its bound.

    test: what pytest's -k finds it by, where that is not the scenario's name.
    """

    def __init__(self, scenario: str, test: str = "") -> None:
        self._scenario, self._test = scenario, test or scenario
        self._beyond: list[str] = []

    def record(
        self, name: str, value: float, unit: str, bound: str = "", *, size: str, note: str = ""
    ) -> None:
        """Print and keep one figure. bound: "<= 1.0", ">= 1", "== 0", or nothing to hold."""
        found = {
            "id": f"{self._scenario}_{name}",
            "value": round(float(value), 4),
            "unit": unit,
            "bound": bound,
            "size": size,
            "scale": SCALE,
            "command": f'make test-operate PYTEST="-k {self._test}"',
            **({"note": note} if note else {}),
        }
        holds = _holds(float(value), bound)
        said = f"{found['id']}: {value:.4g} {unit} ({bound or 'no bound'}; {size}) {note}"
        print(f"{'ok    ' if holds else 'BEYOND'} {said}", flush=True)
        if not holds:
            self._beyond.append(said)
        _keep(found)

    def end(self) -> None:
        """Raise AssertionError where a figure was beyond its bound."""
        assert not self._beyond, "\n".join(self._beyond)


def _holds(value: float, bound: str) -> bool:
    if not bound:
        return True
    side, _, limit = bound.partition(" ")
    # Not `not >`: what is not a number holds nothing.
    return {
        "<=": value <= float(limit),
        ">=": value >= float(limit),
        "==": value == float(limit),
    }[side]


def _keep(found: dict) -> None:
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else []
    before = {entry["id"]: entry for entry in kept}
    old = before.get(found["id"])
    if old is None or old["scale"] <= found["scale"]:
        before[found["id"]] = found
    KEPT.write_text(json.dumps([before[k] for k in sorted(before)], indent=1) + "\n")
