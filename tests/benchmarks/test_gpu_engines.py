"""Engine parts of the GPU command on a stand-in for vLLM's engine; the real one needs minutes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bmt_core
import pytest
import torch

vllm = pytest.importorskip("vllm")

import bmt_server.offline  # noqa: E402
from bmt_server.settings import Settings  # noqa: E402

from benchmarks.gpu import base, engines  # noqa: E402
from benchmarks.gpu.parts import Job  # noqa: E402
from benchmarks.gpu.summary import summary  # noqa: E402

ROWS, COLUMNS = base.SMALL["intermediate_size"], base.SMALL["hidden_size"]


class Gate(torch.nn.Module):
    """A fused gate and up projection, as vLLM's layer has it."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.prefix = f"model.layers.{layer}.mlp.gate_up_proj"
        self.weight = torch.nn.Parameter(torch.ones(2 * ROWS, COLUMNS), requires_grad=False)


class Engine:
    """vLLM's `LLM`: an answer's tokens are its number of zeroed weights, and its mask's digest."""

    def __init__(self, model: str, **options: Any) -> None:
        self.model = torch.nn.ModuleList([Gate(0), Gate(1)])
        parts = {
            "model_config": SimpleNamespace(get_vocab_size=lambda: 2048),
            "cache_config": SimpleNamespace(num_gpu_blocks=7),
            "compilation_config": SimpleNamespace(cudagraph_capture_sizes=[]),
        }
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(**parts))
        assert options["max_num_seqs"] == 8
        self.asked: list[Any] = []

    def generate(self, prompts, params, lora_request=None, use_tqdm=True):
        masks = lora_request or [None] * len(prompts)
        assert len(masks) == len(prompts)
        self.asked += [m for m in masks if m is not None]
        zeros = sum(int((gate.weight == 0).sum()) for gate in self.model)
        zeros_of_mask = 2 * round(ROWS * COLUMNS * 0.002)
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=[zeros if m is None else zeros_of_mask] * params.max_tokens
                    )
                ]
            )
            for m in masks
        ]

    def apply_model(self, function):
        return [function(self.model)]


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(vllm, "LLM", Engine)
    monkeypatch.setattr(bmt_server.offline, "masked_llm", Engine)
    monkeypatch.setattr(bmt_server.offline, "mask_request", lambda mask, name: name)
    job = Job(str(tmp_path), tiny=True)
    base.make(job, lambda key, value: None)
    folder = Path(job.base)
    served = SimpleNamespace(model_path=folder, fingerprint=bmt_core.fingerprint(folder))
    monkeypatch.setattr(Settings, "from_env", lambda: served)
    return job


def test_both_engines_keep_speeds_and_what_parity_needs(job):
    kept: dict[str, dict[str, Any]] = {"bare": {}, "masks": {}}
    engines.bare(job, kept["bare"].__setitem__)
    engines.masks(job, kept["masks"].__setitem__)
    found = summary(kept)
    assert "4 sequences, 16 masks, over bare vLLM" in found
    assert "2 prompts of 64, one mask, over bare vLLM" in found
    assert found["parity base: tokens of the checkpoint's"] == 1.0
    assert found["parity base after masks: tokens of the checkpoint's"] == 1.0
    for how in ("corrected", "in place"):
        assert found[f"parity mask 1, {how}: tokens of the checkpoint's"] == 1.0
    assert found["tokens in which base and mask 0 agree"] == 0.0
    assert found["new versions under load, over known masks"] > 0


def test_a_masks_zeros_are_put_into_the_weights_and_taken_back(job):
    (mask,) = base.masks(job.base, bmt_core.fingerprint(Path(job.base)), range(1))
    model = torch.nn.ModuleList([Gate(0), Gate(1)])
    before = [gate.weight.clone() for gate in model]
    kept = engines._zero(model, mask)
    assert [int((gate.weight[:ROWS] == 0).sum()) for gate in model] == [
        tensor.positions.size for tensor in mask.tensors
    ]
    engines._restore(kept)
    assert all(torch.equal(gate.weight, was) for gate, was in zip(model, before, strict=True))
    model[0].weight.data = torch.empty(0)  # as the CPU backend leaves it
    assert engines._zero(model, mask) == []


@pytest.mark.parametrize(("capability", "attention"), [((9, 0), None), ((10, 0), "TRITON_ATTN")])
def test_engines_wait_for_no_compiler_of_flashinfer(monkeypatch, capability, attention):
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(engines, "flashinfer", lambda: "compiled kernels installed")
    assert "attention_config" not in engines._options(Job(""))
    assert engines.os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    monkeypatch.setattr(engines, "flashinfer", lambda: engines.COMPILES)
    assert engines._options(Job("")).get("attention_config", {}).get("backend") == attention
    assert engines.os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
