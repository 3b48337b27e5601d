"""How far a mask has moved the model from its base: forward KL divergence on the base's own texts.

The paper measures forgetting by it (section 5.4) and leaves open over what it is averaged; here
over tokens, and over whole completions beside that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bmt_trainer.attach import Attached
from bmt_trainer.encode import pad

# Logits of the vocabulary for every position, twice, in fp32: few rows at a time.
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(base ‖ masked) in nats: mean over tokens, mean over completions of their sum."""

    per_token: float
    per_sequence: float
    tokens: int
    sequences: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def forward_kl(
    model: PreTrainedModel,
    attached: Attached,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    padding: int,
) -> Divergence:
    """Σ_v p₀(v) (log p₀(v) - log p(v)) at each token of completions that the base sampled.

    texts: (prompt, completion), token ids; completions are not empty. p is the hard mask as it is.
    """
    training = model.training
    model.eval()
    sums: list[float] = []
    for at in range(0, len(texts), _ROWS):
        chosen = texts[at : at + _ROWS]
        rows = [[*prompt, *completion] for prompt, completion in chosen]
        ids, attend = (t.to(model.device) for t in pad(rows, padding, "right"))
        with attached.state.use("off"):
            base = _log_probabilities(model, ids, attend)
        with attached.state.use("hard"):
            masked = _log_probabilities(model, ids, attend)
        kl = (base.exp() * (base - masked)).sum(-1)  # [B, S]: of the token after each
        for row, (prompt, completion) in zip(kl, chosen, strict=True):
            first = len(prompt) - 1
            sums.append(float(row[first : first + len(completion)].sum()))
    model.train(training)
    tokens = sum(len(completion) for _, completion in texts)
    return Divergence(sum(sums) / tokens, sum(sums) / len(texts), tokens, len(texts))


def _log_probabilities(model: PreTrainedModel, ids: Tensor, attend: Tensor) -> Tensor:
    """[B, S, vocabulary] in fp32."""
    return torch.log_softmax(model(input_ids=ids, attention_mask=attend).logits.float(), -1)
