"""One offline vLLM engine in a process of its own, driven by commands, one a line.

    python -m benchmarks.processes.engine_child CONFIG_JSON FD

Reads one JSON command a line from stdin and writes one JSON answer a line to file descriptor FD;
vLLM's own output goes to stdout and stderr. Between commands it waits in a read and uses no CPU,
so two of these can live at once and take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np


def main() -> None:
    config = json.loads(sys.argv[1])
    with os.fdopen(int(sys.argv[2]), "w") as out:
        start = time.perf_counter()
        llm, adapters = build(config)
        say(out, {"started_s": time.perf_counter() - start, "kernel": kernel(config)})
        for line in sys.stdin:
            try:
                say(out, run(llm, adapters, json.loads(line)))
            except Exception as error:
                say(out, {"error": f"{type(error).__name__}: {error}"})


def build(config: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The engine, and one request handle per adapter file."""
    options, files = config["options"], config["adapters"]
    if config["kind"] == "masks":
        from bmt_server.offline import mask_request, masked_llm

        llm = masked_llm(
            config["model"],
            mask_mode=config["mask_mode"],
            stats_dir=config["stats_dir"],
            **options,
        )
        return llm, [mask_request(f) for f in files]
    from vllm import LLM

    if config["kind"] == "bare":
        return LLM(config["model"], **options), []
    from vllm.lora.request import LoRARequest

    llm = LLM(config["model"], enable_lora=True, **options)
    return llm, [LoRARequest(f"lora{i}", i + 1, f) for i, f in enumerate(files)]


def run(llm: Any, adapters: list[Any], command: dict[str, Any]) -> dict[str, Any]:
    """Generate once. command: sequences, prompt_tokens, new_tokens, seed, and per sequence the
    index of its adapter or None. Returns seconds and the tokens that were generated."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    rng = np.random.default_rng(command["seed"])
    # Below the vocabulary of every model; special tokens are among the first few hundred ids.
    ids = rng.integers(1000, 20000, size=(command["sequences"], command["prompt_tokens"]))
    prompts = [TokensPrompt(prompt_token_ids=row.tolist()) for row in ids]
    params = SamplingParams(temperature=0, max_tokens=command["new_tokens"], ignore_eos=True)
    which = command["adapters"]
    lora = [None if i is None else adapters[i] for i in which] if adapters else None
    # While this process waited for its turn, the host may have given its pages to another. Other
    # prompts than those that are timed, for they may be cached.
    warm = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    others = [TokensPrompt(prompt_token_ids=rng.integers(1000, 20000, 16).tolist())] * 4
    llm.generate(others, warm, lora_request=[lora[0]] * 4 if lora else None, use_tqdm=False)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, lora_request=lora, use_tqdm=False)
    seconds = time.perf_counter() - start
    tokens = sum(len(o.outputs[0].token_ids) for o in outputs)
    if tokens != command["sequences"] * command["new_tokens"]:
        raise RuntimeError(f"{tokens} tokens came of {command}")
    return {"seconds": seconds, "tokens": tokens}


def kernel(config: dict[str, Any]) -> str:
    """Name of the mask kernel that the worker runs, from its figures; empty for other engines."""
    if config["kind"] != "masks":
        return ""
    from bmt_server.ipc.stats_files import WorkerStats

    for _ in range(50):
        if workers := WorkerStats.read_all(config["stats_dir"]):
            return workers[0].kernel
        time.sleep(0.1)
    return ""


def say(out: Any, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
