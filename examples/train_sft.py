"""Train a mask by supervised fine-tuning on a built-in task, and apply it to the model.

python examples/train_sft.py MODEL reverse.bmt [STEPS]
"""

from __future__ import annotations

import sys
from pathlib import Path

from bmt_trainer.methods.config import SftConfig
from bmt_trainer.methods.sft import train


def main(model: str, output: str, steps: str = "100") -> None:
    config = SftConfig(
        model=model,
        dataset="task:reverse-words",  # or a .jsonl file, or a data set of the Hub
        output=Path(output),
        steps=int(steps),
        batch_size=8,
        calibration_prompts=64,
        heldout=16,
    )
    mask = train(config)
    scores = mask.metadata["scores"]
    print(f"{output}: {mask.zeros:,} zeros, {mask.sparsity:.3%} of the gates")
    print(f"right answers: base {scores['base']['exact']}, mask {scores['mask']['exact']} of 16")


if __name__ == "__main__":
    main(*sys.argv[1:])
