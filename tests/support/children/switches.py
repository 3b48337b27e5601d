"""Child process of `engines.run_engine`: switches and replaced weights, in mode scatter."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import torch


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    # Functions of workers need no serialization then.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import bmt_core
    from bmt_server.ipc.stats_files import WorkerStats
    from bmt_server.offline import mask_request, masked_llm
    from vllm import SamplingParams
    from vllm.model_executor.model_loader.weight_checksum import compute_tensor_digests

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

    def digests() -> list[dict[str, str]]:
        # Not `compute_weight_checksums`, for which a mask leaves the weights.
        return llm.collective_rpc(lambda worker: compute_tensor_digests(worker.model_runner.model))

    step(None)
    before = digests()
    step(requests[1])
    masked = digests()
    summed = llm.collective_rpc("compute_weight_checksums")
    base = [{name.rpartition(":")[2]: digest for name, digest in one.items()} for one in summed]
    step(requests[1])
    random.seed(0)
    last = requests[1]
    for _ in range(job["switches"]):
        last = random.choice([r for r in requests if r is not last])
        step(last)
    step(None)
    after = digests()
    step(requests[1])
    llm.collective_rpc("reload_weights")
    reloaded = digests()
    step(requests[1])
    masked_again = digests()
    step(None)
    restored = digests()
    step(requests[1])
    llm.apply_model(halve_a_norm)
    refused = ""
    try:
        step(requests[1])
    except bmt_core.BaseMismatch as error:
        refused = str(error)
    step(None)
    import time

    time.sleep(0.5)  # the worker writes its stats within 0.2 s
    counted = WorkerStats.read_all(job["stats"])[0].switches
    found = {"before": before, "masked": masked, "after": after, "switches": counted}
    found |= {"base": base, "reloaded": reloaded, "masked_again": masked_again}
    found |= {"restored": restored, "refused": refused}
    Path(sys.argv[2]).write_text(json.dumps(found))


def halve_a_norm(model: torch.nn.Module) -> None:
    """Weights that a program writes itself."""
    model.model.norm.weight.data.mul_(0.5)


if __name__ == "__main__":
    main()
