"""Private parts of TRL and of transformers' trainer that training uses.

One table, compared with the installed libraries before a run: methods that the trainers here
override or call, their attributes, and the settings that they are given.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import cache

from bmt_core.library_contract import Breach, Seam, broken, minor_names, minor_version

from bmt_trainer.errors import LibraryError

#: Minor versions of TRL that the tests pass on.
TESTED = ((1, 16),)
#: Requirement of pyproject.toml.
SUPPORTED = ">=1.16,<2"

_MIXINS = "methods/trl_mixins.py"
_TURNS = "methods/rollouts/turns.py"
_SETUP = "methods/trl_setup.py"
_GUARD = "methods/guards/training.py"
_SHARDED = "methods/guards/sharded.py"
_GRPO = "trl.trainer.grpo_trainer:GRPOTrainer"
_DPO = "trl.trainer.dpo_trainer:DPOTrainer"
_KTO = "trl.trainer.kto_trainer:KTOTrainer"
_SDFT = "trl.experimental.sdft.sdft_trainer:SDFTTrainer"
_TRAINER = "transformers.trainer:Trainer"

# Settings of `methods/fit.py`.
_SETTINGS = (
    *("output_dir", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "optim", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "bf16"),
    *("use_cpu", "gradient_checkpointing", "save_strategy", "save_steps", "save_total_limit"),
    *("logging_steps", "logging_nan_inf_filter", "report_to", "disable_tqdm"),
    *("dataloader_pin_memory", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("n_gpu", "_n_gpu"),
)
_OF_SAMPLING = (
    *("steps_per_generation", "num_iterations", "num_generations", "max_completion_length"),
    *("temperature", "top_p", "top_k", "min_p", "use_vllm", "chat_template_kwargs"),
)
_GIVEN = ("self", "model", "args", "train_dataset", "processing_class", "callbacks")

SEAMS = (
    Seam("trl:SFTTrainer.__init__", "methods/sft.py", accepts=_GIVEN),
    Seam(
        "trl:SFTConfig",
        "methods/sft.py",
        attributes=(
            *_SETTINGS,
            *("max_length", "completion_only_loss", "packing", "packing_strategy"),
            *("train_sampling_strategy", "router_aux_loss_coef"),
        ),
    ),
    Seam("trl:pack_dataset", "methods/packing.py", accepts=("dataset", "seq_length", "strategy")),
    Seam(
        f"{_GRPO}.__init__",
        "methods/grpo.py",
        accepts=(*_GIVEN, "reward_funcs", "tools", "environment_factory"),
    ),
    Seam(
        "trl:GRPOConfig",
        "methods/grpo.py",
        attributes=(
            *_SETTINGS,
            *_OF_SAMPLING,
            *("mask_truncated_completions", "reward_weights", "beta", "epsilon", "loss_type"),
            *("scale_rewards", "use_bias_correction_kl", "max_tool_calling_iterations"),
            "router_aux_loss_coef",
        ),
    ),
    Seam(
        _GRPO,
        "methods/grpo.py",
        attributes=(
            *("temperature", "accelerator", "beta", "ref_model", "eos_token_ids", "_tokenizer"),
            *("num_generations_eval", "reward_weights", "_metrics", "_log_metric", "_logs"),
            "_tool_call_loop",
        ),
    ),
    Seam(
        f"{_GRPO}._generate_single_turn",
        _TURNS,
        accepts=(
            *("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
            "has_tool_images",
        ),
    ),
    Seam(f"{_GRPO}._tokenize_prompts", _TURNS, exactly=("self", "prompts")),
    Seam(f"{_GRPO}._generate_and_score_completions", _TURNS, exactly=("self", "inputs")),
    Seam(
        f"{_GRPO}._calculate_rewards",
        _TURNS,
        exactly=("self", "inputs", "prompts", "completions", "completion_ids_list"),
    ),
    Seam(
        f"{_GRPO}._get_per_token_logps_and_entropies",
        _MIXINS,
        accepts=(
            *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
        ),
    ),
    Seam(
        "trl.trainer.utils:add_fused_lm_head", "methods/grpo.py", accepts=("model", "temperature")
    ),
    Seam("trl.trainer.utils:_use_triton", _SETUP, exactly=("device",)),
    Seam("trl.kernels.chunked_logprob:_use_triton", _SETUP, exactly=("device",)),
    *(
        Seam(f"trl.chat_template_utils:{name}", _SETUP, accepts=("processing_class",))
        for name in (
            *("add_response_schema", "get_training_chat_template", "supports_tool_calling"),
            "is_chat_template_prefix_preserving",
        )
    ),
    *(
        Seam(f"trl.data_utils:{name}", "data/row_formats.py", accepts=("example",))
        for name in ("maybe_convert_to_chatml", "maybe_extract_prompt")
    ),
    Seam(f"{_DPO}.__init__", "methods/preferences/dpo.py", accepts=(*_GIVEN, "ref_model")),
    Seam(
        "trl:DPOConfig",
        "methods/preferences/dpo.py",
        attributes=(
            *_SETTINGS,
            *("beta", "loss_type", "max_length", "precompute_ref_log_probs", "disable_dropout"),
            "router_aux_loss_coef",
        ),
    ),
    Seam(
        f"{_DPO}._prepare_dataset",
        "methods/preferences/reference.py",
        exactly=("self", "dataset", "processing_class", "args", "dataset_name"),
    ),
    Seam(
        _DPO,
        "methods/preferences/shares.py",
        attributes=("_metrics", "_total_train_tokens", "data_collator"),
    ),
    Seam(f"{_KTO}.__init__", "methods/preferences/kto.py", accepts=(*_GIVEN, "ref_model")),
    Seam(
        "trl:KTOConfig",
        "methods/preferences/kto.py",
        attributes=(
            *_SETTINGS,
            *("beta", "loss_type", "max_length", "precompute_ref_log_probs", "disable_dropout"),
            *("router_aux_loss_coef", "desirable_weight", "undesirable_weight"),
            "train_sampling_strategy",
        ),
    ),
    Seam(
        f"{_KTO}._prepare_dataset",
        "methods/preferences/reference.py",
        exactly=("self", "dataset", "processing_class", "args", "dataset_name"),
    ),
    # They call `ref_model` as they call the policy.
    *(
        Seam(f"{one}._compute_loss", _MIXINS, exactly=("self", "model", "inputs", "return_outputs"))
        for one in (_DPO, _KTO)
    ),
    Seam(f"{_KTO}._compute_kl_logps", _MIXINS, exactly=("self", "model", "batch")),
    Seam(f"{_SDFT}.__init__", "methods/sdft.py", accepts=_GIVEN),
    Seam(
        "trl.experimental.sdft:SDFTConfig",
        "methods/sdft.py",
        attributes=(
            *_SETTINGS,
            *_OF_SAMPLING,
            *("max_prompt_length", "teacher_model_kind", "teacher_update_rate"),
            *("teacher_prompt_template", "distillation_mode", "distillation_alpha"),
            *("distillation_is_clip", "num_loss_tokens_to_skip"),
        ),
    ),
    Seam(_SDFT, _MIXINS, attributes=("teacher_model", "eos_token_ids", "_tokenizer", "_metrics")),
    Seam(f"{_SDFT}._generate", _MIXINS, exactly=("self", "prompt_ids")),
    Seam(f"{_SDFT}.sample_rollouts", _MIXINS, exactly=("self", "inputs")),
    Seam(f"{_SDFT}._setup_teacher_model", _MIXINS, exactly=("self",)),
    Seam(f"{_SDFT}._get_teacher_context_for_self_distillation", _MIXINS, exactly=("self",)),
    Seam(
        _TRAINER,
        _GUARD,
        attributes=(
            *("training_step", "evaluation_loop", "_get_grad_norm", "_maybe_log_save_evaluate"),
            *("_save_checkpoint", "_save", "callback_handler", "processing_class", "state"),
            *("log", "current_gradient_accumulation_steps", "add_callback", "remove_callback"),
        ),
    ),
    Seam(
        _TRAINER,
        _SHARDED,
        attributes=(
            *("create_accelerator_and_postprocess", "_prepare_for_training", "store_flos"),
            *("save_model", "_save_optimizer_and_scheduler", "_save_rng_state"),
            *("_load_from_checkpoint", "_load_optimizer_and_scheduler"),
        ),
    ),
    Seam(
        "transformers:get_scheduler",
        "methods/schedules.py",
        accepts=(
            *("name", "optimizer", "num_warmup_steps", "num_training_steps"),
            "scheduler_specific_kwargs",
        ),
    ),
    Seam(
        "transformers:TrainerState",
        _GUARD,
        attributes=("global_step", "max_steps", "log_history", "num_input_tokens_seen"),
    ),
    Seam("transformers:PreTrainedModel", _MIXINS, attributes=("_keys_to_ignore_on_save",)),
)


def check_trl(say: Callable[[str], None]) -> None:
    """Raise LibraryError unless the installed TRL has all that training needs.

    say: shows one line if no test has run with this version.
    """
    version = importlib.metadata.version("trl")
    minor = minor_version(version)
    fix = f'install "trl{SUPPORTED}"'
    if minor is not None and minor < min(TESTED):
        raise LibraryError(
            f"TRL is {version}, and training needs {minor_names(TESTED)} or later; {fix}"
        )
    if breaches := _broken():
        parts = "; ".join(map(str, breaches))
        of = f"TRL {version} with transformers {importlib.metadata.version('transformers')}"
        raise LibraryError(f"{of} does not have what training needs: {parts}; {fix}")
    if minor not in TESTED:
        say(
            f"warning: TRL {version} is not among the tested versions ({minor_names(TESTED)}); it "
            "has all private parts that training needs"
        )


@cache
def _broken() -> tuple[Breach, ...]:
    return tuple(broken(SEAMS))
