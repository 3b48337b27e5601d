"""Child process of `engines.run_engine`: generate and score prompts, with or without masks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    options = {"max_num_seqs": 64, "max_model_len": 256, "seed": 0, **job.get("options", {})}
    if job.get("mode"):
        from bmt_server.offline import mask_request, masked_llm

        family = job.get("family", "")
        llm = masked_llm(job["model"], mask_mode=job["mode"], family=family, **options)
        requests = {path: mask_request(path) for path in job.get("masks", [])}
    else:
        from vllm import LLM

        llm = LLM(job["model"], **options)
        requests = {}
    results = [run(llm, requests, part) for part in job["parts"]]
    Path(sys.argv[2]).write_text(json.dumps(results))


def run(llm: Any, requests: dict[str, Any], part: dict[str, Any]) -> Any:
    """Run one batch. part: prompts (texts or ids), masks (a path or None each), generate, cold.

    generate: number of greedy tokens, 0 to score the prompts; cold: reset the prefix cache first.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    if part.get("cold"):
        llm.reset_prefix_cache()
    masks = part.get("masks") or [None] * len(part["prompts"])
    prompts = [
        p if isinstance(p, str) else TokensPrompt(prompt_token_ids=p) for p in part["prompts"]
    ]
    lora = [requests[m] if m else None for m in masks] if requests else None
    if part.get("generate"):
        params = SamplingParams(
            temperature=0, max_tokens=part["generate"], ignore_eos=True, logprobs=0
        )
        outputs = llm.generate(prompts, params, lora_request=lora, use_tqdm=False)
        return [answer(o.prompt_token_ids, o.outputs[0]) for o in outputs]
    # Teacher-forced: the log-probability of each prompt token given those before it.
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate(prompts, params, lora_request=lora, use_tqdm=False)
    return [
        [
            step[token].logprob
            for token, step in zip(o.prompt_token_ids[1:], o.prompt_logprobs[1:], strict=True)
        ]
        for o in outputs
    ]


def answer(prompt: Any, output: Any) -> dict[str, Any]:
    """Token ids of the prompt, generated token ids, and the log-probability of each of them."""
    tokens = list(output.token_ids)
    logp = [step[token].logprob for token, step in zip(tokens, output.logprobs, strict=True)]
    return {"prompt": list(prompt), "tokens": tokens, "logp": logp}


if __name__ == "__main__":
    main()
