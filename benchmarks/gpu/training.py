"""One optimizer step at the base's shape: all gates, live gates, LoRA r=1 and r=16."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.initialization import init_gates
from bmt_trainer.masking.live_gates import live_positions, train_only
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.base import config
from benchmarks.gpu.parts import Job, Keep

SEQUENCES, TOKENS, STEPS = 8, 512, 3
METHODS = ("all gates", "live gates", "LoRA r=1", "LoRA r=16")


def steps(job: Job, keep: Keep) -> None:
    """Milliseconds of a step of 8 x 512 tokens in bf16 with checkpointing, and peak memory.

    The paper's initial gates (Eq. 9) at α = 1000; norms of 1 replace calibration, which a step's
    time does not depend on. Weights are random.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sequences, tokens = (2, 16) if job.tiny else (SEQUENCES, TOKENS)
    for method in METHODS:
        try:
            keep(method, _measure(method, job, device, sequences, tokens))
        except torch.OutOfMemoryError as error:
            keep(method, f"does not fit: {str(error)[:200]}")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(
    method: str, job: Job, device: torch.device, sequences: int, tokens: int
) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model, trained = _model(method, job, device)
    model.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    high = config(job.tiny)["vocab_size"]
    ids = torch.randint(high, (sequences, tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    # The first step allocates the optimizer's state.
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {
        "ms": round(1000 * min(seconds[1:]), 1),
        "peak_gb": round(peak / 1e9, 2) if on_gpu else "not measured: no CUDA device",
        "trained": sum(p.numel() for p in trained),
    }


def _model(method: str, job: Job, device: torch.device) -> tuple[nn.Module, list[nn.Parameter]]:
    shape = {k: v for k, v in config(job.tiny).items() if k != "architectures"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model: Any = LlamaForCausalLM(LlamaConfig(**shape))
    finally:
        torch.set_default_dtype(before)
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if method.startswith("LoRA"):
        from peft import LoraConfig, get_peft_model

        rank = int(method.split("=")[1])
        model = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        )
        return model, [p for p in model.parameters() if p.requires_grad]
    attached = attach(model)
    attached.state.alpha, attached.state.regularizer = 1e3, 1e-5
    norms = {name: torch.ones(m.in_features) for name, m in attached.layers.items()}
    init_gates(attached, norms, eta=1 / 2048)
    if method == "live gates":
        train_only(attached, live_positions(attached, 1e3))
    return model, [m.gate_logits for m in attached.layers.values()]
