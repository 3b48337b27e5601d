"""Training of the live gates only against training of all gates, on the demo's model."""

from __future__ import annotations

import shutil

import bmt_core
from bmt_core import Mask
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import train
from bmt_trainer.settings import build

from reproduce.experiments.record import Figure, keep
from reproduce.experiments.runs import settings_of

COMMAND = "make reproduce NAME=grpo-live"
# Enough to pass through all sharpness values and to delete some thousands of weights.
STEPS = 20


def differences() -> None:
    """Count differing bits of the masks of one GRPO run with the live set and without it."""
    masks = {choice: _run(choice) for choice in ("on", "off")}
    differing = bmt_core.symmetric_difference(masks["on"], masks["off"]).zeros
    steps = masks["on"].metadata["steps"]
    keep(
        [
            Figure(
                id="live_set_bit_differences",
                value=differing,
                interval=None,
                n=masks["on"].numel,
                command=COMMAND,
            )
        ]
    )
    print(f"{differing} of {masks['on'].numel:,} bits differ after {steps} steps")


def _run(choice: str) -> Mask:
    """Train and return the last step's mask with all deletions."""
    settings = settings_of(
        "grpo-arithmetic",
        f"live-{choice}.bmt",
        live_set=choice,
        steps=STEPS,
        heldout=0,
        validation=0,
        select="last",
        lean="off",
        checkpoint_every=0,
    )
    output = settings["output"]
    shutil.rmtree(output.with_name(output.name + ".run"), ignore_errors=True)
    return train(build(GrpoConfig, settings))
