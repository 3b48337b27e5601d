"""Train a mask by GRPO with a reward of your own: answers that are short.

python examples/train_grpo.py MODEL short.bmt [STEPS]
"""

from __future__ import annotations

import sys
from pathlib import Path

from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import train


def short(text: str, answer: str) -> float:
    """1 for an empty answer, 0 from 100 characters on."""
    return max(0.0, 1 - len(text) / 100)


def main(model: str, output: str, steps: str = "20") -> None:
    config = GrpoConfig(
        model=model,
        dataset="task:arithmetic",
        output=Path(output),
        reward=f"{__file__}:short",
        steps=int(steps),
        prompts_per_step=4,
        completions=4,
        max_new_tokens=32,
        calibration_prompts=64,
        heldout=8,
        validation=8,
    )
    mask = train(config)
    print(f"{output}: {mask.zeros:,} zeros, {mask.sparsity:.3%} of the gates")


if __name__ == "__main__":
    main(*sys.argv[1:])
