"""One process of training runs; where a run's gates began, and its first gradients, go to a file.

python two_ranks.py METHOD SETTINGS_JSON …
torchrun --nproc_per_node 2 two_ranks.py METHOD SETTINGS_JSON …

Each run writes `<output>.pt`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from bmt_trainer.distributed import full_tensor
from bmt_trainer.methods import grpo, sft
from bmt_trainer.methods.config import GrpoConfig, SftConfig
from bmt_trainer.process import is_main_process

seen: dict[str, dict[str, torch.Tensor]] = {}


def main() -> None:
    method, *runs = sys.argv[1:]

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
    kind, module = {"sft": (SftConfig, sft), "grpo": (GrpoConfig, grpo)}[method]
    for values in map(json.loads, runs):
        seen.clear()
        module.train(kind(**{**values, "output": Path(values["output"])}))
        if is_main_process():
            torch.save(seen, f"{values['output']}.pt")


if __name__ == "__main__":
    main()
