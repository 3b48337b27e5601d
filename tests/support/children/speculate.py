"""Child process of `engines.run_engine`: greedy answers of each mask, and their drafts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    from bmt_server.offline import mask_request, masked_llm
    from vllm import SamplingParams

    job = json.loads(Path(sys.argv[1]).read_text())
    llm = masked_llm(job["model"], mask_mode=job["mode"], **job["options"])
    params = SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True)
    # The first steps compile and allocate.
    llm.generate(job["prompts"][:2], params, use_tqdm=False)
    masks = [None, *(mask_request(path) for path in job["masks"])]
    start = time.perf_counter()
    outputs = llm.generate(
        job["prompts"] * len(masks),
        params,
        lora_request=[mask for mask in masks for _ in job["prompts"]],
        use_tqdm=False,
    )
    seconds = time.perf_counter() - start
    answers = [output.outputs[0] for output in outputs]
    drafts = [a.spec_decode_metrics for a in answers]
    result = {
        "seconds": seconds,
        "tokens": [list(a.token_ids) for a in answers],
        "drafted": [d.num_draft_tokens if d else 0 for d in drafts],
        "accepted": [sum(n * k for n, k in enumerate(d.histogram)) if d else 0 for d in drafts],
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
