"""Every argument of vLLM is decided: passed on, without effect on masks, or refused by name."""

from __future__ import annotations

import dataclasses
import inspect
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import vllm
from bmt_server import offline
from bmt_server.cli import serve
from bmt_server.settings import SettingsError
from bmt_server.vllm_integration import platform_limits
from bmt_server.vllm_integration.arguments import decided
from bmt_server.vllm_integration.unsupported_flags import (
    REFUSED,
    UnsupportedFlagError,
    check,
    check_model,
    count_drafts,
)
from bmt_server.vllm_integration.versions.check import cli_arguments
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tools.models.configurations import tiny

NAMES = {refusal.flag for refusal in REFUSED} | {"speculative_config"}
# Passed on, unless a part of the value is refused.
IN_PARTS = {"kernel_config"}


@pytest.fixture(scope="module")
def defaults() -> Namespace:
    return cli_arguments().make_arg_parser(FlexibleArgumentParser()).parse_args([])


@pytest.mark.found
def test_every_argument_of_the_installed_vllm_is_decided(defaults):
    """Fails for an argument that a new vLLM adds: decide it in `decided.py` or refuse it."""
    found = set(vars(defaults))
    found |= {f.name for kind in (EngineArgs, AsyncEngineArgs) for f in dataclasses.fields(kind)}
    found |= {*inspect.signature(vllm.LLM.__init__).parameters} - {"self", "kwargs"}
    assert found - decided.DECIDED - NAMES == set()
    assert decided.DECIDED & NAMES == IN_PARTS


def test_no_argument_is_in_two_lists():
    lists = (decided.OURS, decided.FRONTEND, decided.MODEL, decided.ENGINE, decided.IRRELEVANT)
    assert sum(len(part) for part in lists) == len(decided.DECIDED)


def test_the_defaults_pass(defaults):
    check(defaults, defaults=defaults)
    check(defaults, offline=True, defaults=defaults)


def test_an_undecided_argument_is_refused(defaults):
    new = Namespace(**vars(defaults), weights_elsewhere=False)
    check(new, defaults=new)
    with pytest.raises(UnsupportedFlagError, match=r"--weights-elsewhere \(True\).*remove it"):
        check(Namespace(**{**vars(new), "weights_elsewhere": True}), defaults=new)


def test_offline_use_refuses_it_too(monkeypatch):
    """An option that a newer vLLM adds, to the engine's arguments or to `vllm.LLM`."""

    @dataclasses.dataclass
    class Newer(EngineArgs):
        weights_elsewhere: bool = False

    class Llm:
        def __init__(self, model, *, order_elsewhere: str | None = None): ...

    monkeypatch.setattr(offline, "EngineArgs", Newer)
    monkeypatch.setattr(vllm, "LLM", Llm)
    for option in ({"weights_elsewhere": True}, {"order_elsewhere": "x"}):
        with pytest.raises(UnsupportedFlagError, match=r"elsewhere .*does not know how it acts"):
            offline.masked_llm("/no/such/folder", **option)
    with pytest.raises(SettingsError, match="not a folder"):
        offline.masked_llm("/no/such/folder", weights_elsewhere=False, max_model_len=64)


BREAKING = [
    ("offload_backend", "prefetch"),
    ("offload_group_size", 4),
    ("cpu_offload_gb", 2.0),
    ("load_format", "ipc_cache"),
    ("load_format", "dummy"),
    ("load_format", "tensorizer"),
    ("enable_sleep_mode", True),
    ("enable_cumem_allocator", True),
    ("enable_dbo", True),
    ("ubatch_size", 2),
    ("prefill_context_parallel_size", 2),
    ("quantization", "fp8"),
    ("quantization_config", {"a": 1}),
    ("kv_transfer_config", {"kv_connector": "x"}),
    ("kv_offloading_backend", "lmcache"),
    ("enable_elastic_ep", True),
    ("enable_fault_tolerance", True),
    ("worker_cls", "mine.Worker"),
    ("max_loras", 4),
    ("specialize_active_lora", True),
    ("diffusion_config", {"a": 1}),
    ("scheduler_cls", "mine.Scheduler"),
    ("monokernel", True),
    ("kernel_config", {"monokernel": True}),
    ("model_weights", "s3://elsewhere"),
]


@pytest.mark.found
@pytest.mark.parametrize(("flag", "value"), BREAKING)
def test_combinations_that_would_break_in_silence_are_refused(defaults, flag, value):
    """By the server and by offline use, with the flag, its value and a reason."""
    with pytest.raises(
        UnsupportedFlagError, match=f"--{flag.replace('_', '-')} .*cannot be used: ."
    ):
        check(Namespace(**{**vars(defaults), flag: value}))
    with pytest.raises(UnsupportedFlagError, match=flag.replace("_", "-")):
        offline.masked_llm("/no/such/folder", **{flag: value})


def test_a_weight_transfer_is_for_offline_use(defaults):
    given = Namespace(**{**vars(defaults), "weight_transfer_config": {"backend": "nccl"}})
    check(given, offline=True)
    with pytest.raises(UnsupportedFlagError, match="start it again"):
        check(given)


def speculates(**config) -> Namespace:
    return Namespace(speculative_config={"num_speculative_tokens": 3, **config})


@pytest.mark.found
@pytest.mark.parametrize(
    "config",
    [
        {"method": "ngram", "prompt_lookup_max": 4},
        {"method": "ngram_gpu"},
        {"method": "suffix", "suffix-decoding-max-cached-requests": 0},
        {"method": "eagle3", "model": "a/drafter"},
        {"method": "qwen3_next_mtp"},
        {"method": "mtp", "rejection_sample_method": "block"},
        {"model": "a/small-model"},
    ],
)
def test_drafts_that_the_masked_model_verifies_are_allowed(config):
    args = speculates(**config)
    check(args)
    count_drafts(args)
    assert args.per_request_spec_decode_metrics == "summary"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"method": "extract_hidden_states"}, "not known to verify"),
        ({"method": "custom_class"}, "not known to verify"),
        ({"method": "dspark"}, "not known to verify"),
        ({"method": "ngram", "rejection_sample_method": "synthetic"}, "did not verify"),
        ({"method": "suffix"}, "other?.*tenant"),
        ({"method": 3}, "3 is not known to verify"),
        *(
            ({"method": "ngram", "rejection_sample_method": value}, "is .*; it must be standard")
            for value in (None, "", "x", ["standard"])
        ),
    ],
)
def test_other_speculation_is_refused(config, reason):
    with pytest.raises(UnsupportedFlagError, match=f"--speculative-config.*{reason}"):
        check(speculates(**config))


@pytest.mark.parametrize("value", [["ngram"], "ngram", 3, [], 0])
def test_a_value_that_is_no_object_is_refused(value):
    for method in (None, "ngram"):
        with pytest.raises(UnsupportedFlagError, match="no JSON object"):
            check(Namespace(speculative_config=value, spec_method=method))


def test_the_short_form_is_checked_too():
    check(Namespace(spec_method="ngram"))
    check(Namespace(spec_method="suffix"), offline=True)
    for method in ("suffix", "custom_class"):
        with pytest.raises(UnsupportedFlagError, match="--spec-method"):
            check(Namespace(spec_method=method))
    args = Namespace(spec_method="ngram", per_request_spec_decode_metrics="detailed")
    count_drafts(args)
    assert args.per_request_spec_decode_metrics == "detailed"
    for flag, value in (("spec_method", "ngram"), ("spec_model", "a/b"), ("spec_tokens", 3)):
        args = Namespace(**{flag: value})
        count_drafts(args)
        assert args.per_request_spec_decode_metrics == "summary"
    args = Namespace(spec_method=None, per_request_spec_decode_metrics="none")
    count_drafts(args)
    assert args.per_request_spec_decode_metrics == "none"


@pytest.mark.found
@pytest.mark.parametrize(
    ("cpu", "second", "method", "refused"),
    [
        (True, True, None, "VLLM_USE_V2_MODEL_RUNNER=0"),
        (True, False, "dspark", "'dspark'"),
        (True, False, "ngram", ""),
        (False, True, None, ""),
    ],
)
def test_the_second_runner_on_the_cpu_is_refused_at_start(
    monkeypatch, cpu, second, method, refused
):
    """Masks do not load there; and a method that vLLM derives itself is looked at, too."""
    monkeypatch.setattr(platform_limits, "current_platform", SimpleNamespace(is_cpu=lambda: cpu))
    speculative = None if method is None else SimpleNamespace(method=method)
    model = SimpleNamespace(dtype=torch.bfloat16)
    config = SimpleNamespace(
        use_v2_model_runner=second, speculative_config=speculative, model_config=model
    )
    if not refused:
        platform_limits.check_configuration(config)
        return
    with pytest.raises(SettingsError, match=refused):
        platform_limits.check_configuration(config)


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3", "minimax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_attention_in_another_precision_is_refused_before_it_ends_the_engine(
    monkeypatch, kind, dtype
):
    """As `serve` chooses float32 itself on CPUs without instructions for 16 bits."""
    monkeypatch.setattr(platform_limits, "current_platform", SimpleNamespace(is_cpu=lambda: True))
    model = SimpleNamespace(dtype=dtype, hf_text_config=tiny(kind))
    config = SimpleNamespace(use_v2_model_runner=False, speculative_config=None, model_config=model)
    if kind != "qwen3_5_text" or dtype == torch.bfloat16:
        platform_limits.check_configuration(config)
        return
    with pytest.raises(SettingsError, match=f"--dtype is {str(dtype)[6:]}; use --dtype bfloat16"):
        platform_limits.check_configuration(config)


@pytest.mark.parametrize(
    "flags", [["--model", "another"], ["another"], ["--config", "{folder}/flags.yaml"]]
)
def test_a_second_model_among_the_flags_is_refused(tmp_path, flags):
    (tmp_path / "flags.yaml").write_text("model: another\n")
    given = [flag.format(folder=tmp_path) for flag in flags]
    with pytest.raises(UnsupportedFlagError, match=r"--model \('another'\).*'a/b' is served"):
        serve._parse_vllm_flags("a/b", given)


def test_the_same_model_among_the_flags_passes(defaults):
    for flag in ("model", "model_tag"):
        check_model("a/b", Namespace(**{**vars(defaults), flag: "a/b"}), defaults)


def test_a_refused_key_is_not_in_the_message(defaults):
    with pytest.raises(UnsupportedFlagError, match="--api-key cannot be used") as error:
        check(Namespace(**{**vars(defaults), "api_key": ["sk-secret"]}))
    assert "sk-secret" not in str(error.value)
