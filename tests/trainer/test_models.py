"""Checkpoints refused by their files, chat templates, and the context of a model."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from bmt_trainer import models
from bmt_trainer.checkpoint_files import check_checkpoint
from bmt_trainer.errors import ConfigError, ModelError, NonFinite, QuantizedModel
from bmt_trainer.templates import chat_templates, shipped
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.support.tiny_model import tiny_llama


@pytest.fixture
def base(checkpoint, tmp_path):
    """A copy of the checkpoint, to be spoilt."""
    return shutil.copytree(checkpoint, tmp_path / "base")


def configure(base, **values):
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def weights_stay_on_disk(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)


QUANTIZERS = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "fbgemm_fp8"},
    {"quant_method": "mxfp4"},
    {"quant_method": "hqq"},
    {"quant_method": "a method of next year"},
]


@pytest.mark.found
@pytest.mark.parametrize("config", QUANTIZERS, ids=lambda c: c["quant_method"])
def test_a_quantized_base_is_refused_by_its_configuration(base, weights_stay_on_disk, config):
    configure(base, quantization_config=config)
    for refuse in (check_checkpoint, models.load_model):
        with pytest.raises(QuantizedModel, match=config["quant_method"]):
            refuse(base)


@pytest.mark.parametrize("place", ["compression_config", "text_config"])
def test_other_places_of_a_quantizer(base, weights_stay_on_disk, place):
    inner = {"quant_method": "gptq"}
    value = {"quantization_config": inner} if place == "text_config" else inner
    configure(base, **{place: value})
    with pytest.raises(QuantizedModel, match="gptq"):
        check_checkpoint(base)


def test_a_quantizers_own_file_and_packed_tensors(base, weights_stay_on_disk):
    (base / "quantize_config.json").write_text("{}")
    with pytest.raises(QuantizedModel, match=r"quantize_config\.json"):
        check_checkpoint(base)
    (base / "quantize_config.json").unlink()
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    for kind in (torch.int8, torch.float8_e4m3fn, torch.int32):
        save_file({**tensors, name: tensors[name].to(kind)}, base / "model.safetensors")
        with pytest.raises(QuantizedModel, match=name):
            check_checkpoint(base)


def test_a_null_quantizer_is_none(base):
    configure(base, quantization_config=None)
    check_checkpoint(base)


@pytest.mark.found
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 64), "model.safetensors"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
            ),
            "model-00002-of-00002.safetensors",
        ),
    ],
)
def test_an_incomplete_folder_is_one_line(base, weights_stay_on_disk, spoil, says):
    spoil(base)
    with pytest.raises(ModelError, match=says) as raised:
        check_checkpoint(base)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["no such kind", None, 7])
def test_an_unknown_architecture_is_one_line(base, kind):
    configure(base, model_type=kind)
    for load in (models.outline, models.load_model):
        with pytest.raises(ModelError) as raised:
            load(base)
        assert "\n" not in str(raised.value)


def test_a_folder_without_a_tokenizer(base):
    for path in base.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError) as raised:
        models.load_tokenizer(base)
    assert "\n" not in str(raised.value)


def test_missing_tensors_do_not_start_at_random(base):
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.gate_proj.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.gate_proj"):
        models.load_model(base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(value):
    model = tiny_llama()
    tokens = torch.tensor([[3, 4, 5]])
    with models.finite_logits(model):
        model(tokens)
    model.model.norm.weight.data[3] = value
    with pytest.raises(NonFinite), models.finite_logits(model):
        model(tokens)
    model(tokens)  # outside of the block nothing looks


def test_excluded_tokens_are_finite_enough():
    """A head may exclude tokens by minus infinity."""
    model = tiny_llama()
    with models.finite_logits(model):
        hook = model.lm_head.register_forward_hook(
            lambda _m, _i, y: y.index_fill(-1, torch.tensor([5]), -torch.inf), prepend=True
        )
        model(torch.tensor([[3, 4, 5]]))
        hook.remove()


def template_file(folder, text):
    path = folder / "t.jinja"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.found
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% for m in messages %}", "not a Jinja template"),
        ("{{ messages[", "not a Jinja template"),
        ("{% unknown_tag %}", "not a Jinja template"),
        ("{{ messages | no_such_filter }}", "not a Jinja template"),
        (b"\xff\xfe{\x00", "not UTF-8"),
        ("  \n", "empty"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(checkpoint, tmp_path, text, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        models.load_tokenizer(checkpoint, template_file(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "t.jinja" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.jinja", "nosuch", "."])
def test_a_template_that_is_not_there_lists_those_that_are(checkpoint, name):
    with pytest.raises(ConfigError, match="tools"):
        models.load_tokenizer(checkpoint, name)


def test_a_shipped_template_by_name(checkpoint):
    tokenizer = models.load_tokenizer(checkpoint, "tools")
    assert tokenizer.chat_template == shipped.text_of("tools")
    assert chat_templates.template_digest(tokenizer) != chat_templates.template_digest(
        models.load_tokenizer(checkpoint)
    )


def test_arguments_that_the_template_does_not_read_are_refused(checkpoint, tmp_path):
    text = "{{ bos_token }}{% if think %}{{ messages }}{% endif %}{{ strftime_now('%d') }}"
    tokenizer = models.load_tokenizer(checkpoint, template_file(tmp_path, text))
    chat_templates.check_template_kwargs(tokenizer, {"think": False})
    chat_templates.check_template_kwargs(tokenizer, None)
    for wrong in ("thinks", "messages", "add_generation_prompt"):
        with pytest.raises(ConfigError, match=rf"{wrong}.*it reads think"):
            chat_templates.check_template_kwargs(tokenizer, {wrong: 1})
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        chat_templates.check_template_kwargs(tokenizer, {"think": False})


def test_the_context_is_that_of_the_configuration(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())

    def context(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        return models.context_length(tmp_path)

    assert context(max_position_embeddings=512) == 512
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert context(max_position_embeddings=512, rope_parameters={**scaled, "rope_theta": 1e4}) == (
        2048
    )


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", "finds 0 GPUs; set auto or cpu"),
        ("cuda:3", "cuda:3 is set"),
        ("gpu", "'gpu' is none of torch's; set auto, cpu, cuda or mps"),
        ("mps", "finds no GPU of Apple's; set auto or cpu"),
        ("", "'' is none of torch's"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_in_a_line(monkeypatch, device, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=re.escape(words)):
        models.pick_device(device)
    assert models.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "repeats"),
    [("llama", True), ("gemma2", True), ("qwen3_5_text", False), ("falcon_h1", False)],
)
def test_states_of_linear_attention_are_not_repeated(kind, repeats):
    assert models.repeats_cache(AutoConfig.for_model(kind)) is repeats


@pytest.mark.parametrize(
    ("there", "device", "says"),
    [
        (True, "auto", "device: cpu; Apple's GPU is there"),
        (True, "mps", "no test of this project runs"),
        (True, "cpu", None),
        (False, "auto", None),
    ],
)
def test_a_line_says_what_becomes_of_apples_gpu(there, device, says, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = models.device_note(device)
    assert line is None if says is None else says in line
    assert device != "auto" or models.pick_device(device) == torch.device("cpu")
