"""Order and padding of tokenized rows.

Legend: B rows of a batch, S tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler
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


class SharedBatches(Sampler[list[int]]):
    """The share of one process in the batches that all of them train on together.

    The rows, their order and the steps they fall into are those of a single process that takes
    `size * processes` rows at once: the last batch of an epoch is short, no row comes twice, and a
    process has no rows of it if there are not enough. sampler: of single rows, equal in all
    processes; accelerate replaces it by one that it seeds.
    """

    def __init__(self, sampler: Any, size: int, processes: int, rank: int) -> None:
        self.sampler, self._size, self._processes, self._rank = sampler, size, processes, rank

    def __len__(self) -> int:
        return -(-len(self.sampler) // (self._size * self._processes))

    def __iter__(self) -> Iterator[list[int]]:
        first = self._size * self._rank
        for batch in BatchSampler(self.sampler, self._size * self._processes, drop_last=False):
            yield batch[first : first + self._size]


def collate_share(
    collate: Callable[[Sequence[Any]], dict[str, Any]], idle: Any
) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """`collate` for shares that may be empty: of the row `idle` then, without a label.

    A process must run each pass with the others, because they gather sharded layers together.
    """

    def collated(rows: Sequence[Any]) -> dict[str, Any]:
        batch = collate(rows or [idle])
        if not rows:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch

    return collated
