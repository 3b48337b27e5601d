"""Order and padding of tokenized rows.

Legend: B rows of a batch, S tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers.trainer_pt_utils import get_length_grouped_indices


def grouped_by_length(
    rows: Sequence[Mapping[str, list[int]]], size: int, steps: int, seed: int
) -> list[Mapping[str, list[int]]]:
    """`size * steps` rows in batches of `size` rows of similar length, repeated over epochs.

    The order is transformers' `group_by_length`. It is made here because transformers' sampler
    draws from the global generator, whose state differs in a resumed run.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(row["input_ids"]) for row in rows]
    order: list[int] = []
    while len(order) < size * steps:
        order += get_length_grouped_indices(lengths, size, generator=generator)
    return [rows[at] for at in order[: size * steps]]


def pad(
    rows: Sequence[Sequence[int]], token: int, side: Literal["left", "right"]
) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask), both [B, S], of rows of unequal length, padded on `side`."""
    size = max(map(len, rows))
    gaps = [[token] * (size - len(row)) for row in rows]
    if side == "left":
        ids = [gap + list(row) for gap, row in zip(gaps, rows, strict=True)]
        attend = [[0] * len(gap) + [1] * (size - len(gap)) for gap in gaps]
    else:
        ids = [list(row) + gap for gap, row in zip(gaps, rows, strict=True)]
        attend = [[1] * (size - len(gap)) + [0] * len(gap) for gap in gaps]
    return torch.tensor(ids), torch.tensor(attend)


def batches(
    rows: Sequence[Sequence[int]], size: int, token: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Batches of `size` rows, shortest first, padded on the right so that positions stay."""
    ordered = sorted(rows, key=len)
    for at in range(0, len(ordered), size):
        ids, attend = pad(ordered[at : at + size], token, "right")
        yield {"input_ids": ids.to(device), "attention_mask": attend.to(device)}
