"""Answer a prompt without and with a mask in vLLM itself; no server.

python examples/offline_inference.py MODEL MASK.bmt "The capital of France is"
"""

from __future__ import annotations

import sys

from bmt_server.offline import mask_request, masked_llm
from vllm import SamplingParams


def main(model: str, mask: str, prompt: str) -> None:
    llm = masked_llm(model, max_model_len=512, enforce_eager=True)
    sampling = SamplingParams(temperature=0, max_tokens=24)
    for name, request in (("base", None), ("mask", mask_request(mask))):
        (output,) = llm.generate([prompt], sampling, lora_request=request, use_tqdm=False)
        print(f"{name}: {output.outputs[0].text!r}")


# vLLM starts its engine in a process of its own, which imports this file again.
if __name__ == "__main__":
    main(*sys.argv[1:4])
