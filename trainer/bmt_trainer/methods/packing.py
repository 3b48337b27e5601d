"""Packing: several rows in one sequence, and proof that a model keeps them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import pack_dataset

from bmt_trainer.errors import ConfigError
from bmt_trainer.models import evaluating

#: TRL's packing: longest rows first, each into the fullest sequence that has room; none is split.
STRATEGY = "bfd"
#: Rows that a sequence is taken to hold, where a run chooses the number of its examples.
ROWS_OF_A_SEQUENCE = 8

# Tokens of the two rows of the probe.
_FIRST, _SECOND = 7, 9
# Share of a difference that counts as rounding where sums have no fixed order: on a GPU.
_ROUNDING = 0.02


def sequences(rows: Sequence[Mapping[str, Any]], max_length: int) -> list[list[int]]:
    """The lengths of the rows in each packed sequence, as TRL's trainer packs them."""
    lengths = Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows]})
    return [list(packed) for packed in pack_dataset(lengths, max_length, STRATEGY)["seq_lengths"]]


def fill(packed: Sequence[Sequence[int]], max_length: int) -> float:
    """The share of the sequences' length that rows take."""
    return sum(map(sum, packed)) / (len(packed) * max_length)


def summary(packed: Sequence[Sequence[int]], max_length: int) -> str:
    """A line on packed sequences: their number, and how full they are."""
    return (
        f"packed {sum(map(len, packed)):,} examples into {len(packed):,} sequences, "
        f"{fill(packed, max_length):.0%} full at max_length {max_length:,}"
    )


@torch.no_grad()
def require_separation(model: PreTrainedModel) -> None:
    """Raise ConfigError if a row of a packed sequence depends on the row before it.

    Positions begin at 0 with each row, and no mask of attention is given; from that transformers
    makes a mask in blocks (5.19, masking_utils.py, `find_packed_sequence_indices`) for the
    implementations of attention that take one, and flash attention separates the rows itself.
    Layers that carry a state over the sequence, and implementations without a mask, do not. So two
    rows are packed, and the outputs at the second are computed again with another first row: they
    must be the same bits, because a probability of 0 adds exactly 0. On a GPU, rounding may differ.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]
    firsts = torch.randint(size, (2, _FIRST), generator=generator)
    second = torch.randint(size, (1, _SECOND), generator=generator)
    with evaluating(model):
        outputs = [_logits(model, torch.cat([first[None], second], dim=1)) for first in firsts]
    changed = (outputs[0].float() - outputs[1].float()).abs()
    rounding = 0.0 if model.device.type == "cpu" else _ROUNDING * float(changed[:, :_FIRST].max())
    # Not `>`, which is false for NaN.
    if not float(changed[:, _FIRST:].max()) <= rounding:
        kind = getattr(model.config, "_attn_implementation", None)
        raise ConfigError(
            f"packing: {type(model).__name__} with attention {kind!r} does not keep the rows of a "
            "sequence apart; use group_by_length instead"
        )


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [1, S, V] of two packed rows, given to the model as TRL's collator gives them."""
    lengths = (_FIRST, _SECOND)
    ends = torch.tensor([0, _FIRST, _FIRST + _SECOND], dtype=torch.int32)
    inputs = {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "seq_idx": torch.repeat_interleave(
            torch.arange(2, dtype=torch.int32), torch.tensor(lengths)
        )[None],
    }
    placed = {name: value.to(model.device) for name, value in inputs.items()}
    output = model(**placed, max_length_q=max(lengths), max_length_k=max(lengths), use_cache=False)
    logits: Tensor = output.logits
    return logits
