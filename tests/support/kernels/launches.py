"""Launches of Triton kernels, recorded like a CUDA graph's: to be counted, or repeated."""

from __future__ import annotations

from typing import Any

import pytest
from bmt_server.worker.kernels.triton import delta, weights

KERNELS = ("correct", "correct_tiles", "switch", "read_values")


class Recorded:
    """Wrapper of a kernel that records each launch, and runs it unless `dry`."""

    def __init__(self, kernel: Any, label: str, log: list[tuple], dry: bool) -> None:
        self.kernel, self.label, self.log, self.dry = kernel, label, log, dry

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            self.log.append((self.label, self.kernel[grid], arguments, options))
            if not self.dry:
                self.kernel[grid](*arguments, **options)

        return launch


def record(monkeypatch: pytest.MonkeyPatch, *, dry: bool = False) -> list[tuple]:
    """Record every launch from here on, as (name, launcher, arguments, options)."""
    log: list[tuple] = []
    for module in (delta, weights):
        for label in KERNELS:
            if hasattr(module, label):
                kernel = getattr(module, label)
                monkeypatch.setattr(module, label, Recorded(kernel, label, log, dry))
    return log


def replay(launches: list[tuple]) -> None:
    """Repeat recorded launches with the arguments that they had."""
    for _, launcher, arguments, options in launches:
        launcher(*arguments, **options)
