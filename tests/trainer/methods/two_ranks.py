"""One process of training runs; where a run's gates began, its first gradients, and what the first
process's first pass of the reference took and found, go to a file.

python two_ranks.py SETTINGS_JSON …
torchrun --nproc_per_node 2 two_ranks.py SETTINGS_JSON …

Each run's settings name its `method`; it writes `<output>.pt`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from bmt_trainer.distributed import full_tensor
from bmt_trainer.methods import grpo, sft
from bmt_trainer.methods.config import DpoConfig, GrpoConfig, KtoConfig, SftConfig
from bmt_trainer.methods.preferences import dpo, kto
from bmt_trainer.methods.trl_mixins import BaseReference
from bmt_trainer.process import is_main_process

seen: dict[str, Any] = {}
METHODS: dict[str, Any] = {
    "sft": (SftConfig, sft),
    "dpo": (DpoConfig, dpo),
    "kto": (KtoConfig, kto),
    "grpo": (GrpoConfig, grpo),
}


def main() -> None:

    class Spy(transformers.TrainerCallback):
        """Gradients are of all processes, before they are clipped."""

        def __init__(self, attached) -> None:
            self._attached = attached

        def on_train_begin(self, *_, **__) -> None:
            seen["deleted"] = {n: m.zero_positions() for n, m in self._attached.layers.items()}

        def on_pre_optimizer_step(self, *_, **__) -> None:
            if "gradients" not in seen:
                layers = self._attached.layers.items()
                seen["gradients"] = {n: full_tensor(m.gate_logits.grad).clone() for n, m in layers}

    train = transformers.Trainer.train

    def spied(self, *args, **kwargs):
        self.add_callback(Spy(self.attached))
        return train(self, *args, **kwargs)

    transformers.Trainer.train = spied
    refer = BaseReference.__call__

    def referring(self, **kwargs):
        outputs = refer(self, **kwargs)
        if "log_probs" in outputs:
            seen.setdefault("reference", (kwargs, outputs.log_probs.clone()))
        return outputs

    BaseReference.__call__ = referring  # type: ignore[method-assign]
    for values in map(json.loads, sys.argv[1:]):
        seen.clear()
        kind, module = METHODS[values.pop("method")]
        module.train(kind(**{**values, "output": Path(values["output"])}))
        if is_main_process():
            torch.save(seen, f"{values['output']}.pt")


if __name__ == "__main__":
    main()
