"""Log-probabilities of given answers by the model as it is, in bounded memory.

Legend: B rows of a batch, S tokens of its longest row, V size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmt_trainer.data.batching import pad
from bmt_trainer.errors import NonFinite
from bmt_trainer.models import evaluating

#: A row's token ids [S], and 1 for each token whose log-probability counts [S].
Scored = tuple[Sequence[int], Sequence[int]]

#: Rows of a batch, if the bound on logits allows as many.
ROWS = 8
#: Logits of a pass: 0.5 GB in fp32. They are in memory up to three times.
LOGITS = 1 << 27


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    rows: Sequence[Scored],
    padding: int,
    advance: Callable[[int], None] = lambda n: None,
    *,
    most_logits: int = LOGITS,
) -> list[float]:
    """The log-probability of each row's counted tokens, in nats.

    Sums in fp64 of fp32 log-probabilities. padding: the token that fills rows; most_logits: of one
    pass: rows with fewer are batched, and the tokens of a row with more are taken in several
    passes. Raises NonFinite.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
    at_once = max(1, most_logits // int(vocabulary))
    found: list[float] = []
    with evaluating(model):
        for batch in _batches(rows, at_once):
            found += _of_batch(model, batch, padding, at_once)
            if not all(map(math.isfinite, found[-len(batch) :])):
                raise NonFinite("a log-probability of a held-out answer is not finite")
            advance(len(batch))
    return found


def _batches(rows: Sequence[Scored], at_once: int) -> Iterator[list[Scored]]:
    """Consecutive rows, so many that their positions with logits are at most `at_once`, or one."""
    batch: list[Scored] = []
    for row in rows:
        longer = [*batch, row]
        if batch and (len(longer) > ROWS or len(longer) * _positions(longer) > at_once):
            yield batch
            longer = [row]
        batch = longer
    if batch:
        yield batch


def _start(batch: Sequence[Scored]) -> int:
    """The position before the first counted token of any row; the first token is never counted."""
    return max(0, min(list(mask).index(1) for _, mask in batch) - 1)


def _positions(batch: Sequence[Scored]) -> int:
    """Positions of a batch's rows at which logits are needed."""
    return max(len(ids) for ids, _ in batch) - 1 - _start(batch)


def _of_batch(model: nn.Module, batch: Sequence[Scored], padding: int, at_once: int) -> list[float]:
    device = next(model.parameters()).device
    ids, attend = (part.to(device) for part in pad([i for i, _ in batch], padding, "right"))
    counted = pad([mask for _, mask in batch], 0, "right")[0].to(device)  # [B, S]
    first, last = _start(batch), ids.shape[1] - 1
    sums = torch.zeros(len(batch), dtype=torch.float64, device=device)
    size = max(1, at_once // len(batch))
    for at in range(first, last, size):
        end = min(at + size, last)
        # By number, if one pass has all: some architectures take nothing else.
        keep: Tensor | int = torch.arange(at, end, device=device)
        if (at, end) == (first, last):
            keep = ids.shape[1] - at
        logits = model(input_ids=ids, attention_mask=attend, logits_to_keep=keep).logits
        following = ids[:, at + 1 : end + 1]
        each = -functional.cross_entropy(
            logits[:, : end - at].float().transpose(1, 2), following, reduction="none"
        )
        sums += (each.double() * counted[:, at + 1 : end + 1]).sum(-1)
    return sums.tolist()
