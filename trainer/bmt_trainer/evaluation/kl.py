"""How far training has moved the model from its base: forward KL divergence on the base's texts.

The paper measures forgetting by it (section 5.4) and leaves open over what it is averaged; here
over tokens, and over whole completions beside that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bmt_trainer.data.encoding import pad
from bmt_trainer.masking.attach import Attached
from bmt_trainer.models import evaluating

# Logits of the vocabulary for every token of completions, twice, in fp32: few rows at a time.
_ROWS = 8

#: A model, and the block in which it computes what is meant.
Policy = tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]
#: (prompt, completion), token ids; completions are not empty.
Texts = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(base ‖ tuned) in nats: mean over tokens, mean over completions of their sum."""

    per_token: float
    per_sequence: float
    tokens: int
    sequences: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def forward_kl(model: nn.Module, attached: Attached, texts: Texts, padding: int) -> Divergence:
    """`divergence` of the hard mask as it is from the base, on texts that the base sampled."""
    base: Policy = (model, lambda: attached.state.use("off"))
    return divergence(base, (model, lambda: attached.state.use("hard")), texts, padding)


@torch.no_grad()
def divergence(base: Policy, tuned: Policy, texts: Texts, padding: int) -> Divergence:
    """Σ_v p₀(v) (log p₀(v) - log p(v)) at each token of completions that the base sampled."""
    sums: list[float] = []
    with evaluating(base[0]), evaluating(tuned[0]):
        for at in range(0, len(texts), _ROWS):
            chosen = texts[at : at + _ROWS]
            rows = [[*prompt, *completion] for prompt, completion in chosen]
            ids, attend = pad(rows, padding, "right")
            start = min(len(prompt) for prompt, _ in chosen) - 1
            p0, p = (_log_probabilities(policy, ids, attend, start) for policy in (base, tuned))
            kl = (p0.exp() * (p0 - p)).sum(-1)  # [B, S - start]: of the token after each
            for row, (prompt, completion) in zip(kl, chosen, strict=True):
                first = len(prompt) - 1 - start
                sums.append(float(row[first : first + len(completion)].sum()))
    tokens = sum(len(completion) for _, completion in texts)
    return Divergence(sum(sums) / tokens, sum(sums) / len(texts), tokens, len(texts))


def _log_probabilities(policy: Policy, ids: Tensor, attend: Tensor, start: int) -> Tensor:
    """[B, S - start, vocabulary] in fp32, of the tokens after those from `start` on."""
    model, block = policy
    device = next(model.parameters()).device
    with block():
        logits = model(
            input_ids=ids.to(device),
            attention_mask=attend.to(device),
            logits_to_keep=ids.shape[1] - start,
        ).logits
    return torch.log_softmax(logits.float(), -1)
