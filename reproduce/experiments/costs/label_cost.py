"""Time of the SFT loss on a CPU: log-probabilities of labels only against all positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from bmt_trainer.methods.trl_setup import prepare_trl
from bmt_trainer.models import load_model
from torch import Tensor
from trl.kernels.chunked_logprob import _use_triton as every
from trl.trainer import utils

from benchmarks.harness.environment import demo_model
from reproduce.experiments.costs.turns import first_loss_over_second, masked_model
from reproduce.experiments.record import keep, ratio

COMMAND = "make reproduce NAME=costs-labels"
# A step of small-table3: prompts of 230 tokens, answers of ten.
ROWS, PROMPT, ANSWER = 4, 230, 10


def compare() -> None:
    """Time both in turns; keep the ratio, for masks and for full fine-tuning."""
    prepare_trl()
    labels_alone = utils._use_triton
    torch.manual_seed(0)
    for name in ("masks", "full"):
        if name == "masks":
            model, attached = masked_model()
            parameters = attached.gates()
        else:
            model = load_model(demo_model())
            parameters = list(model.requires_grad_().parameters())
        ids = torch.randint(100, model.config.vocab_size, (ROWS, PROMPT + ANSWER))
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))

        def loss(scored: Any, model: Any = model, rows: Any = rows) -> Tensor:
            utils._use_triton = scored
            return model(**rows, fused_lm_head=True).loss

        ways = {"labels": partial(loss, labels_alone), "all": partial(loss, every)}
        time_ratio = first_loss_over_second(ways, parameters)
        utils._use_triton = labels_alone
        figure = f"loss_time_labels_over_all_{name}"
        keep([ratio(figure, time_ratio, COMMAND)])
        print(f"{figure} {time_ratio}")
