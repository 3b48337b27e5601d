"""Child process of `engines.run_engine`: stock vLLM with a stock LoRA adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    adapter, merged = make_adapter(job["model"], Path(job["folder"]))
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = {"enforce_eager": True, "dtype": "float32", "max_model_len": 128, "max_num_seqs": 4}
    llm = LLM(job["model"], enable_lora=True, max_lora_rank=8, **options)
    params = SamplingParams(temperature=0, max_tokens=16)
    prompts = ["The sun is", "Once upon a time"]

    def ask(engine: LLM, lora: LoRARequest | None) -> list[list[int]]:
        outputs = engine.generate(prompts, params, lora_request=lora, use_tqdm=False)
        return [list(o.outputs[0].token_ids) for o in outputs]

    out = {"base": ask(llm, None), "lora": ask(llm, LoRARequest("stock", 1, str(adapter)))}
    # vLLM has loaded all plugins by now, including ours, which must have patched nothing.
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.platforms import current_platform
    from vllm.v1.metrics.loggers import PrometheusStatLogger
    from vllm.v1.worker import lora_model_runner_mixin as mixin

    patchable = {
        "load_lora_model": mixin.LoRAModelRunnerMixin.load_lora_model,
        "check_and_update_config": current_platform.check_and_update_config,
        "process_weights": UnquantizedLinearMethod.process_weights_after_loading,
        "record": PrometheusStatLogger.record,
    }
    out["patched"] = [name for name, f in patchable.items() if getattr(f, "bmt_patch", False)]
    out["manager"] = mixin.LRUCacheWorkerLoRAManager.__name__
    del llm
    out["merged"] = ask(LLM(str(merged), **options), None)
    Path(sys.argv[2]).write_text(json.dumps(out))


def make_adapter(model: str, folder: Path) -> tuple[Path, Path]:
    """A random LoRA adapter of rank 8 on all projections, and the checkpoint with it merged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tuned = get_peft_model(base, LoraConfig(r=8, lora_alpha=8, target_modules=names))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    adapter, merged = folder / "adapter", folder / "merged"
    tuned.save_pretrained(adapter)
    tuned.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(model).save_pretrained(merged)
    return adapter, merged


if __name__ == "__main__":
    main()
