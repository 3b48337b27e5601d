"""Child process of `engines.run_engine`: vLLM's compilation for GPUs, layer by layer, on a CPU.

There vLLM compiles a whole model as one graph. This process leaves its mode for GPUs in place and
gives layers the op's form for GPUs. Operators that this build lacks, and that passes of that mode
only compare with, are declared.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import vllm
from bmt_server.worker.engine_vllm import mask_manager
from bmt_server.worker.kernels import masked_delta
from vllm.config import CompilationMode
from vllm.platforms.cpu import CpuPlatform


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    library = torch.library.Library("_C", "FRAGMENT")
    if job["piecewise"]:
        declare_missing(library)
        compile_in_pieces()
    if job["form"] == "object":
        mask_manager.op_for = lambda device, handle: masked_delta.op_for(
            torch.device("cuda"), handle
        )
    from vllm.compilation.counter import compilation_counter

    options = dict(job["options"], enforce_eager=not job["piecewise"])
    if job["masks"]:
        from bmt_server.offline import mask_request, masked_llm

        llm = masked_llm(job["model"], mask_mode="delta", **options)
        masks = [None, *(mask_request(path) for path in job["masks"])]
    else:
        llm, masks = vllm.LLM(job["model"], **options), [None]
    params = vllm.SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True)
    outputs = llm.generate(
        job["prompts"] * len(masks),
        params,
        lora_request=[mask for mask in masks for _ in job["prompts"]] if masks != [None] else None,
        use_tqdm=False,
    )
    result = {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "pieces": compilation_counter.num_piecewise_capturable_graphs_seen,
        "compiled": compilation_counter.num_compiled_artifacts_saved,
        "saved": compilation_counter.num_aot_artifacts_saved,
        "loaded": compilation_counter.num_aot_artifacts_loaded,
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


def declare_missing(library: torch.library.Library) -> None:
    """Declare operators of `torch.ops._C` that vLLM's passes name and this build lacks."""
    passes = Path(vllm.__file__).parent / "compilation"
    sources = [path.read_text() for path in passes.rglob("*.py")]
    for name in {n for s in sources for n in re.findall(r"torch\.ops\._C\.(\w+)", s)}:
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}() -> ()")


def compile_in_pieces() -> None:
    complete = CpuPlatform.check_and_update_config

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        complete(vllm_config)
        compilation = vllm_config.compilation_config
        compilation.mode, compilation.backend = CompilationMode.VLLM_COMPILE, "inductor"
        compilation.compile_sizes = []

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


if __name__ == "__main__":
    main()
