"""Time and memory of the CUDA graphs that steps with masks need, in one line at start.

vLLM 0.32.0 captures every size once for steps without adapters and again for steps with them
(`v1/worker/gpu/lora_utils.py`, `get_lora_capture_cases`). Only the second capture is for masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm.v1.worker.gpu.lora_utils import get_lora_capture_cases


def report_captures(runner: Any, say: Callable[[str], None]) -> None:
    """Hook a model runner's `capture_model`, which returns the bytes of its graphs."""
    capture: Callable[..., int] = runner.capture_model

    def capture_model(*args: Any, **kwargs: Any) -> int:
        start = time.perf_counter()
        size = capture(*args, **kwargs)
        if size > 0 and not kwargs.get("profile_only"):
            cases = get_lora_capture_cases(runner.lora_config, runner.compilation_config)
            say(capture_line(time.perf_counter() - start, size, len(cases)))
        return size

    runner.capture_model = capture_model


def capture_line(seconds: float, size: int, cases: int) -> str:
    """seconds and size (bytes): of all captures; cases: captures of each size."""
    if cases < 2:
        return f"CUDA graphs: one capture for steps with and without masks ({seconds:.1f} s)."
    share = (cases - 1) / cases
    return (
        f"CUDA graphs: every size is captured {cases} times, and steps with masks use all but one: "
        f"about {share * seconds:.1f} of {seconds:.1f} s and {share * size / 2**20:.0f} of "
        f"{size / 2**20:.0f} MiB are for masks."
    )
