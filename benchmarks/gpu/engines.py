"""Real vLLM engines on the base: bare, and with masks. Each runs in its part's own process.

Both keep their tokens for parity. The bare engine also answers with a mask's positions set to zero
in its weights, which is the masked checkpoint: the mask engine's answers are compared with these.
Answers agree up to the rounding of bfloat16, so parity is a share of tokens, shown beside the
share in which base and mask agree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import base
from benchmarks.gpu.device import COMPILES, flashinfer
from benchmarks.gpu.parts import Job, Keep

KNOWN, COLD = 16, 16  # masks of the loads, and versions that arrive under load
SEQUENCES, PROMPT, NEW, PREFILL = (1, 8, 32, 64, 128, 256), 16, 64, 1024
PARITY_PROMPTS, PARITY_TOKENS, PARITY_MASKS = 16, 24, 2


def _options(job: Job) -> dict[str, Any]:
    random_base = not job.model
    options: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_model_len": 2048,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "enable_prefix_caching": False,
        "seed": 0,
        "skip_tokenizer_init": random_base,
        # The sizes that the loads use; capturing all takes longer than all loads.
        "compilation_config": {"cudagraph_capture_sizes": [1, 8, 32, 64, 128, 256]},
    }
    if job.tiny:
        options |= {"max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 512}
        options |= {"enforce_eager": True, "compilation_config": {}}
    if torch.cuda.is_available() and flashinfer() == COMPILES:
        # Greedy answers need no sampler of it. Attention is Triton's where vLLM prefers FlashInfer.
        os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
        if torch.cuda.get_device_capability() >= (10, 0):
            options["attention_config"] = {"backend": "TRITON_ATTN"}
    return options


class Loads:
    """Loads of one engine. requests: `lora_request` of each mask, empty for the bare engine."""

    def __init__(self, job: Job, llm: Any, requests: list[Any]) -> None:
        self.llm, self.requests, self.tiny = llm, requests, job.tiny
        self.vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()

    def generate(
        self, sequences: int, prompt: int, new: int, masks: list[Any] | None, seed: int = 0
    ) -> tuple[float, list[list[int]]]:
        """Seconds, and the tokens of each answer."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        rng = np.random.default_rng(seed)
        # Past the special tokens, below the vocabulary of every model.
        ids = rng.integers(1000, min(20000, self.vocabulary), (sequences, prompt))
        prompts = [TokensPrompt(prompt_token_ids=row.tolist()) for row in ids]
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        answers = self.llm.generate(prompts, params, lora_request=masks, use_tqdm=False)
        seconds = time.perf_counter() - start
        return seconds, [list(a.outputs[0].token_ids) for a in answers]

    def speeds(self, keep: Keep) -> None:
        """Output tokens a second by sequences and composition, and prompt tokens a second."""
        new, sizes = (8, (1, 4)) if self.tiny else (NEW, SEQUENCES)
        compositions: dict[str, Callable[[int], list[Any] | None]] = {"base": lambda n: None}
        if self.requests:
            compositions |= {
                "one mask": lambda n: [self.requests[0]] * n,
                "4 masks": lambda n: [self.requests[i % 4] for i in range(n)],
                f"{KNOWN} masks": lambda n: [self.requests[i % KNOWN] for i in range(n)],
            }
        for sequences in sizes:
            for name, masks in compositions.items():
                chosen = masks(sequences)
                self.generate(sequences, PROMPT, 4, chosen, seed=1)
                best = min(self.generate(sequences, PROMPT, new, chosen, s)[0] for s in (2, 3))
                keep(f"{sequences} sequences, {name}", {"tokens_s": round(sequences * new / best)})
        length, count = (64, 2) if self.tiny else (PREFILL, 8)
        for name, masks in compositions.items():
            chosen = masks(count)
            self.generate(count, length, 1, chosen, seed=4)
            best = min(self.generate(count, length, 1, chosen, s)[0] for s in (5, 6))
            keep(f"{count} prompts of {length}, {name}", {"tokens_s": round(count * length / best)})

    def parity(self, keep: Keep, name: str, masks: list[Any] | None) -> None:
        tokens = 4 if self.tiny else PARITY_TOKENS
        keep(name, self.generate(PARITY_PROMPTS, PROMPT, tokens, masks, seed=7)[1])


def _facts(llm: Any, started: float, keep: Keep) -> None:
    settings = llm.llm_engine.vllm_config
    keep("start_s", round(time.monotonic() - started, 1))
    keep("kv_blocks", settings.cache_config.num_gpu_blocks)
    keep("graph_sizes", settings.compilation_config.cudagraph_capture_sizes)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        keep("gpu_memory_gb", round((total - free) / 1e9, 1))


def bare(job: Job, keep: Keep) -> None:
    """vLLM without adapter support, and with a mask's zeros in its weights."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the weights are in this process
    from bmt_server.vllm_integration.checkpoint import checkpoint_folder
    from vllm import LLM

    folder, started = checkpoint_folder(job.base, None), time.monotonic()
    llm = LLM(folder, **_options(job))
    _facts(llm, started, keep)
    loads = Loads(job, llm, [])
    loads.parity(keep, "parity base", None)
    loads.speeds(keep)
    # Positions do not depend on the fingerprint, which takes seconds to read.
    for i, mask in enumerate(base.masks(folder, "0" * 64, range(PARITY_MASKS))):
        zeroed = llm.apply_model(lambda model, mask=mask: _zero(model, mask))[0]
        if not zeroed:
            keep(f"parity mask {i}", "not run: this backend repacks its weights")
            continue
        loads.parity(keep, f"parity mask {i}", None)
        llm.apply_model(lambda model, kept=zeroed: _restore(kept))


def _zero(model: torch.nn.Module, mask: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Zero a mask's positions in the fused weights; their old gates, or none if repacked."""
    by_name = {tensor.name: tensor for tensor in mask.tensors}
    kept = []
    for layer in model.modules():
        prefix = getattr(layer, "prefix", "")
        tensor = by_name.get(prefix.removesuffix("gate_up_proj") + "gate_proj.weight")
        if tensor is None or not prefix.endswith("gate_up_proj"):
            continue
        if layer.weight.dim() != 2 or layer.weight.shape[0] < tensor.shape[0]:
            return []
        gate = layer.weight.data[: tensor.shape[0]]
        kept.append((gate, gate.clone()))
        places = torch.from_numpy(tensor.positions.astype(np.int64)).to(gate.device)
        gate[places // tensor.shape[1], places % tensor.shape[1]] = 0
    return kept


def _restore(kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for gate, before in kept:
        gate.copy_(before)


def masks(job: Job, keep: Keep) -> None:
    """The same engine with masks in mode auto: corrected, in place, and versions under load."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from bmt_server.offline import mask_request, masked_llm
    from bmt_server.settings import Settings

    started = time.monotonic()
    llm = masked_llm(job.base, **_options(job))
    _facts(llm, started, keep)
    served = Settings.from_env()
    assert served is not None, "masked_llm has set it"
    made = base.masks(served.model_path, served.fingerprint, range(KNOWN + COLD))
    requests = [mask_request(mask, f"m{i}") for i, mask in enumerate(made)]
    known, cold = requests[:KNOWN], requests[KNOWN:]
    loads = Loads(job, llm, known)
    loads.parity(keep, "parity base", None)
    for i in range(PARITY_MASKS):
        # With a token of the base in every step the mask is corrected; alone it goes in place.
        mixed = [known[i]] * (PARITY_PROMPTS - 1) + [None]
        loads.parity(keep, f"parity mask {i}, corrected", mixed)
        loads.generate(4, PROMPT, 16, [known[i]] * 4)
        loads.parity(keep, f"parity mask {i}, in place", [known[i]] * PARITY_PROMPTS)
    loads.parity(keep, "parity base after masks", None)
    loads.speeds(keep)
    sequences, new = (4, 8) if job.tiny else (128, NEW)
    for name, chosen in (("known masks", known), ("new versions arrive", cold)):
        every = [chosen[i % len(chosen)] for i in range(sequences)]
        seconds, _ = loads.generate(sequences, PROMPT, new, every, seed=8)
        keep(f"under load: {name}", {"tokens_s": round(sequences * new / seconds)})
