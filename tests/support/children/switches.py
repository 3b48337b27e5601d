"""Child process of `engines.run_engine`: many random switches in one engine in mode scatter."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    from bmt_server.ipc.stats_files import WorkerStats
    from bmt_server.offline import mask_request, masked_llm
    from vllm import SamplingParams

    llm = masked_llm(
        job["model"],
        mask_mode="scatter",
        stats_dir=job["stats"],
        enforce_eager=True,
        max_num_seqs=4,
        max_model_len=64,
    )
    requests = [None, *(mask_request(path) for path in job["masks"])]
    params = SamplingParams(temperature=0, max_tokens=1)

    def step(choice: object) -> None:
        llm.generate("Hello", params, lora_request=choice, use_tqdm=False)

    step(None)
    before = llm.collective_rpc("compute_weight_checksums")
    step(requests[1])
    masked = llm.collective_rpc("compute_weight_checksums")
    random.seed(0)
    last = requests[1]
    for _ in range(job["switches"]):
        last = random.choice([r for r in requests if r is not last])
        step(last)
    step(None)
    after = llm.collective_rpc("compute_weight_checksums")
    import time

    time.sleep(0.5)  # the worker writes its stats within 0.2 s
    counted = WorkerStats.read_all(job["stats"])[0].switches
    Path(sys.argv[2]).write_text(
        json.dumps({"before": before, "masked": masked, "after": after, "switches": counted})
    )


if __name__ == "__main__":
    main()
