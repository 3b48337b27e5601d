"""Child process that trains by one method; its arguments are a job as JSON and a descriptor.

Each line on stdin makes one optimizer step; the answer is its seconds and the process's peak
memory. Between steps the process waits in a read.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.initialization import init_gates
from bmt_trainer.masking.live_gates import live_positions, train_only
from bmt_trainer.models import load_model
from bmt_trainer.process import keep_freed_memory
from torch import nn


def main() -> None:
    job = json.loads(sys.argv[1])
    keep_freed_memory()
    with os.fdopen(int(sys.argv[2]), "w") as out:
        model, trained = METHODS[job["method"]](job["model"])
        step = Step(model, trained, job["sequences"], job["tokens"])
        _say(out, {"trained": sum(p.numel() for p in trained)})
        for _ in sys.stdin:
            start = time.perf_counter()
            step()
            # Linux reports KiB.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            _say(out, {"seconds": time.perf_counter() - start, "peak_bytes": peak})


class Step:
    """Forward, backward, clipping and AdamW on one batch, under bf16 autocast as TRL trains."""

    def __init__(
        self, model: nn.Module, trained: list[nn.Parameter], sequences: int, tokens: int
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(1000, 20000, (sequences, tokens), generator=generator)
        self._model, self._trained = model.train(), trained
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def __call__(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self._model(input_ids=self._ids, labels=self._ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _masked(path: str, live: bool) -> tuple[nn.Module, list[nn.Parameter]]:
    """The paper's initial gates (Eq. 9) at α = 1000; norms of 1 replace calibration, for speed."""
    model = load_model(path)  # type: ignore[arg-type]
    attached = attach(model)
    attached.state.alpha, attached.state.regularizer = 1e3, 1e-5
    norms = {name: torch.ones(m.in_features) for name, m in attached.layers.items()}
    init_gates(attached, norms, eta=1 / 2048)
    if live:
        train_only(attached, live_positions(attached, 1e3))
    return model, [m.gate_logits for m in attached.layers.values()]


def _lora(path: str) -> tuple[nn.Module, list[nn.Parameter]]:
    """peft's LoRA of rank 1 on all seven projections."""
    from peft import LoraConfig, get_peft_model

    base = load_model(path)  # type: ignore[arg-type]
    model = get_peft_model(base, LoraConfig(r=1, lora_alpha=2, target_modules="all-linear"))
    return model, [p for p in model.parameters() if p.requires_grad]


def _full(path: str) -> tuple[nn.Module, list[nn.Parameter]]:
    """All weights in fp32, as in mixed-precision training."""
    model = load_model(path).float()  # type: ignore[arg-type]
    return model, list(model.parameters())


METHODS: dict[str, Any] = {
    "live": lambda path: _masked(path, live=True),
    "dense": lambda path: _masked(path, live=False),
    "lora1": _lora,
    "full": _full,
}


def _say(out: Any, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
