"""Limits: what a slice must read and compute, worked out by hand, and the machine's rates."""

from __future__ import annotations

import json

import pytest

from benchmarks.harness import inputs
from benchmarks.processes.engine import Work
from benchmarks.suites.limits import rates
from benchmarks.suites.limits.step import Decoder, Rates, mask_bytes, ratio_limit

CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
}
# Queries and outputs 8 x 8 each, keys and values 8 x 4 each, three products of the MLP 8 x 16.
BODY = 2 * (2 * 64 + 2 * 32 + 3 * 128)


def test_sizes_of_a_decoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    decoder = Decoder.of(tmp_path, "bfloat16")
    assert decoder == Decoder(body=BODY, head=80, kv_per_token=2 * 2 * 2 * 2, item_bytes=2)


def test_a_slice_is_one_prefill_and_a_step_for_each_further_token():
    decoder = Decoder(body=100, head=10, kv_per_token=4, item_bytes=2)
    work = Work(sequences=3, prompt_tokens=5, new_tokens=3)
    # Memory alone: weights in each of three steps, the tokens so far in the last two.
    reading = decoder.seconds(work, Rates(bytes_per_s=1.0, operations_per_s=float("inf")))
    assert reading == 2 * (3 * 110 + 4 * 3 * (6 + 7))
    # Products alone: 15 tokens, then 3 and 3; the head for 3 sequences a step.
    computing = decoder.seconds(work, Rates(bytes_per_s=float("inf"), operations_per_s=1.0))
    assert computing == 2 * (100 * (15 + 3 + 3) + 10 * 9)
    # Both at once: the longer one of each step, so no less than either.
    assert decoder.seconds(work, Rates(1.0, 1.0)) >= max(reading, computing)


def test_a_masks_bytes_and_what_they_leave_of_the_speed(tmp_path):
    gates = {"model.layers.0.mlp.gate_proj.weight": (100, 50)}
    mask = inputs.random_mask(gates, "f" * 64, seed=0, sparsity=0.1)
    import bmt_core

    bmt_core.save(mask, tmp_path / "m.bmt")
    each = mask_bytes(tmp_path / "m.bmt", item_bytes=2)
    assert each == 500 * (2 + 2) + 4 * 101
    work = Work(sequences=4, prompt_tokens=1, new_tokens=5)
    rate = Rates(bytes_per_s=each * 100.0, operations_per_s=1.0)
    # Four masks in five steps are 0.2 s at that rate, next to 0.8 s.
    assert ratio_limit(0.8, work, 4, each, rate) == pytest.approx(0.8)
    assert ratio_limit(0.8, work, 0, each, rate) == 1.0


def test_the_rates_are_measured_in_the_engines_type(monkeypatch):
    monkeypatch.setattr(rates, "_READ_BYTES", 1 << 24)
    monkeypatch.setattr(rates, "_SIDE", 256)
    found = rates.measure({"dtype": "float32"})
    assert found["bytes_per_s"] > 1e8
    assert found["operations_per_s"] > 1e8
