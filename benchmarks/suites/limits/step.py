"""What a slice of work must move and compute, and the least time that these take.

A step reads each weight once, each sequence's keys and values, and the positions of the masks of
its sequences; it multiplies by each weight once for each token. The limit is the longer of the two:
reading at the rate of memory, or computing at that of large products. Activations, sampling and
everything between the steps are left out, so no engine reaches it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import bmt_core

from benchmarks.processes.engine import Work

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes that memory gives a second, and operations of large products a second."""

    bytes_per_s: float
    operations_per_s: float

    def seconds(self, bytes_: float, operations: float) -> float:
        """The least time of a step that reads and computes so much, both at once."""
        return max(bytes_ / self.bytes_per_s, operations / self.operations_per_s)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a dense decoder. body, head: weights that each token and each sample multiply by."""

    body: int
    head: int
    kv_per_token: int
    item_bytes: int

    @classmethod
    def of(cls, model: Path, dtype: str) -> Decoder:
        """Sizes from a checkpoint folder's config.json. Raises KeyError where it lacks one."""
        config = json.loads((model / "config.json").read_text())
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or hidden // heads
        kv_heads = config.get("num_key_value_heads", heads)
        attention = hidden * width * (2 * heads + 2 * kv_heads)
        mlp = 3 * hidden * config["intermediate_size"]
        return cls(
            body=layers * (attention + mlp),
            head=hidden * config["vocab_size"],
            kv_per_token=2 * layers * kv_heads * width,
            item_bytes=_ITEM_BYTES[dtype],
        )

    def seconds(self, work: Work, rates: Rates) -> float:
        """The least time of a slice: one prefill, then a step for each further token."""
        prompt = work.sequences * work.prompt_tokens
        least = self._step(rates, tokens=prompt, sampled=work.sequences, held=0)
        for done in range(1, work.new_tokens):
            held = work.sequences * (work.prompt_tokens + done)
            least += self._step(rates, tokens=work.sequences, sampled=work.sequences, held=held)
        return least

    def _step(self, rates: Rates, *, tokens: int, sampled: int, held: int) -> float:
        read = (self.body + self.head + held * self.kv_per_token) * self.item_bytes
        # Attention adds little at these lengths: it is left out.
        computed = 2 * (tokens * self.body + sampled * self.head)
        return rates.seconds(read, computed)


def mask_bytes(path: Path, item_bytes: int) -> int:
    """Bytes of a mask in memory: a column and a value for each zero, and where each row begins."""
    mask = bmt_core.load(path)
    total = 0
    for tensor in mask.tensors:
        rows, cols = tensor.shape
        column = 2 if cols <= 1 << 16 else 4
        total += len(tensor.positions) * (column + item_bytes) + 4 * (rows + 1)
    return total


def ratio_limit(bare_s: float, work: Work, masks: int, bytes_each: int, rates: Rates) -> float:
    """The highest speed over the bare engine's, which takes `bare_s`, that reading masks allows.

    Each step reads every mask of its sequences once, after the bare engine's own work.
    """
    added = work.new_tokens * masks * bytes_each / rates.bytes_per_s
    return bare_s / (bare_s + added) if masks else 1.0
