"""Forward KL divergence of a tuned model from its base, on completions of the base.

The paper measures forgetting by it (section 5.4) without stating the average; here it is the mean
over tokens, and the mean over completions of their sums.

Legend: B rows of a batch, S tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bmt_trainer.data.batching import pad
from bmt_trainer.masking.attach import Attached
from bmt_trainer.models import evaluating

# Rows of a batch: the vocabulary's logits of each completion token are in memory twice, in fp32.
_ROWS = 8

#: A model, and a context manager in which it computes the distribution to compare.
Policy = tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]
#: (prompt, completion), token ids; completions are not empty.
Texts = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(base ‖ tuned) in nats: mean over tokens, and mean over completions of their sums."""

    # Departure: both means; the paper states none.

    per_token: float
    per_sequence: float
    tokens: int
    sequences: int

    def to_json(self) -> dict[str, float]:
        """The divergence for a mask's metadata and results."""
        return asdict(self)


def forward_kl(model: nn.Module, attached: Attached, texts: Texts, padding: int) -> Divergence:
    """`divergence` of the hard mask from the base, on texts that the base sampled."""
    base: Policy = (model, lambda: attached.state.use("off"))
    return divergence(base, (model, lambda: attached.state.use("hard")), texts, padding)


@torch.no_grad()
def divergence(base: Policy, tuned: Policy, texts: Texts, padding: int) -> Divergence:
    """Σ_v p₀(v) (log p₀(v) - log p(v)) at each token of completions that the base sampled.

    padding: token id that fills short rows.
    """
    sums: list[float] = []
    with evaluating(base[0]), evaluating(tuned[0]):
        for at in range(0, len(texts), _ROWS):
            chosen = texts[at : at + _ROWS]
            rows = [[*prompt, *completion] for prompt, completion in chosen]
            ids, attend = pad(rows, padding, "right")
            start = min(len(prompt) for prompt, _ in chosen) - 1
            p0, p = (_log_probabilities(policy, ids, attend, start) for policy in (base, tuned))
            kl = (p0.exp() * (p0 - p)).sum(-1)  # [B, S - start], of the next token
            for row, (prompt, completion) in zip(kl, chosen, strict=True):
                first = len(prompt) - 1 - start
                sums.append(float(row[first : first + len(completion)].sum()))
    tokens = sum(len(completion) for _, completion in texts)
    return Divergence(sum(sums) / tokens, sum(sums) / len(texts), tokens, len(texts))


def _log_probabilities(policy: Policy, ids: Tensor, attend: Tensor, start: int) -> Tensor:
    """Log-probabilities [B, S - start, vocabulary], fp32, of the token after each from `start`."""
    model, context = policy
    device = next(model.parameters()).device
    with context():
        logits = model(
            input_ids=ids.to(device),
            attention_mask=attend.to(device),
            logits_to_keep=ids.shape[1] - start,
        ).logits
    return torch.log_softmax(logits.float(), -1)
