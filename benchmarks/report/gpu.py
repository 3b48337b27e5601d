"""The page's section on GPUs: kernels that were measured, and all that was not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

# Llama 3.1 8B: weights that a decoding step reads, in bytes of bf16, and one layer's gate and up.
STEP_BYTES, GATE_UP_BYTES, LAYERS = 15.0e9, 2 * 2 * 14336 * 4096, 32
TOKENS = (1, 8, 32, 64)


def ratios(figures: Path) -> list[tuple[int, float]]:
    """Speed of a decoding step beside bare vLLM by the measured kernels, a mask each token.

    figures: `gpu.json`. A step without masks takes as long as reading its weights at the rate at
    which the measured product of gate and up reads its own. Attention is left out, which would
    bring the ratios closer to 1.
    """
    found = {figure["id"]: figure for figure in json.loads(figures.read_text())}
    ratio = []
    for tokens in TOKENS:
        figure = found[f"gpu_delta_decode_{tokens}_each_its_own"]
        step = figure["baseline"] * STEP_BYTES / GATE_UP_BYTES
        ratio.append((tokens, step / (step + LAYERS * figure["value"])))
    return ratio


def section(target: Path) -> Iterator[str]:
    """Lines of the page; none without the figures of the kernels."""
    figures = target / "gpu.json"
    if not figures.exists():
        return
    shown = ", ".join(f"{ratio:.2f} with {tokens}" for tokens, ratio in ratios(figures))
    yield from ("## On a GPU", "")
    yield (
        "**Not measured: the engine.** vLLM with masks has not run on a GPU: no start, no capture, "
        "no memory profile, no tokens a second; nor has a step of training at the size of 8B. "
        "`python -m benchmarks.gpu` measures all of it on a machine that has one, in eight minutes."
    )
    yield ""
    yield (
        "Measured on an H100 were kernels by themselves (`gpu.json`, `gpu-lora.json`; "
        "docs/results/log/gpu-kernels.md), before tokens of one mask formed tiles in decoding "
        "steps. By arithmetic from these figures an 8B model decodes at this share of bare vLLM's "
        "speed, a mask each, "
        f"by tokens of a step: {shown}; and, as a token's cost stays the same, at about 0.7 with "
        "256. `python -m benchmarks.gpu.arithmetic` counts launches, bytes and instructions with "
        "tiles; their time is not measured."
    )
    yield ""
