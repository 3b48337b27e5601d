"""`bmt-server doctor MODEL` and `serve MODEL`: what a model lacks, before a weight is loaded."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from bmt_core.gates.geometry import quantized_gates
from bmt_core.optional_packages import unusable
from bmt_core.optional_packages.unusable import CHILD_ENV
from bmt_server.cli import doctor, doctor_model
from bmt_server.settings import SettingsError
from bmt_server.vllm_integration import cpu_environment
from bmt_server.vllm_integration.checkpoint import served_gates
from bmt_server.vllm_integration.start import missing_parts
from bmt_server.vllm_integration.start.experts import check_experts
from bmt_server.vllm_integration.start.missing_parts import hint
from bmt_trainer.models import architecture_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from vllm.config import KernelConfig
from vllm.platforms import current_platform

from tests.support.tiny_model import save_tiny_llama
from tests.support.training.architectures import small_config
from tools.models.configurations import tiny


@pytest.fixture
def dense(tmp_path):
    return save_tiny_llama(tmp_path / "dense")


def of_kind(folder, kind, **changes):
    """A tiny checkpoint of an architecture."""
    AutoModelForCausalLM.from_config(small_config(kind, **changes)).save_pretrained(folder)
    return folder


def rewritten(folder, change):
    """The checkpoint with its tensors changed, as a quantizer writes them."""
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        if name.endswith(".gate_proj.weight"):
            tensors |= change(name.removesuffix(".weight"), tensor)
        else:
            tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})
    return folder


def codes(dtype):
    """An empty tensor of codes; its values do not count."""
    return lambda tensor: torch.zeros(tensor.shape).to(dtype)


QUANTIZERS = {
    "FP8 by blocks": lambda name, w: {
        f"{name}.weight": codes(torch.float8_e4m3fn)(w),
        f"{name}.weight_scale_inv": torch.ones(3, 5),
    },
    "INT8": lambda name, w: {f"{name}.weight": codes(torch.int8)(w)},
    "AWQ and GPTQ": lambda name, w: {f"{name}.qweight": codes(torch.int32)(w)},
    "compressed-tensors in 4 bits": lambda name, w: {
        f"{name}.weight_packed": codes(torch.int32)(w),
        f"{name}.weight_scale": torch.ones(1),
    },
    "bitsandbytes": lambda name, w: {
        f"{name}.weight": codes(torch.uint8)(w),
        f"{name}.weight.absmax": torch.ones(1),
    },
    "bitsandbytes in 16-bit storage": lambda name, w: {
        f"{name}.weight": torch.zeros(w.numel() // 4, 1, dtype=torch.bfloat16),
        f"{name}.weight.absmax": torch.ones(1),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8),
    },
    "HQQ": lambda name, w: {f"{name}.W_q": codes(torch.uint8)(w)},
    "torchao": lambda name, w: {
        f"{name}._weight_qdata": codes(torch.float8_e4m3fn)(w),
        f"{name}._weight_scale": torch.ones(1),
    },
    "AQLM": lambda name, w: {
        f"{name}.codes": codes(torch.int8)(w),
        f"{name}.codebooks": torch.ones(1),
    },
    "NVFP4": lambda name, w: {
        f"{name}.weight": codes(torch.uint8)(w)[:, ::2].contiguous(),
        f"{name}.weight_scale": torch.ones(1).to(torch.float8_e4m3fn),
        f"{name}.input_scale": torch.ones(1),
    },
}


def verdicts(model):
    return {f.what: f for f in doctor_model.findings(str(model))}


def test_a_dense_model_is_served(dense):
    found = verdicts(dense)
    assert {f.verdict for f in found.values()} == {"ok"}
    assert "LlamaForCausalLM" in found["Model"].value
    gates = served_gates(str(dense))
    shapes = gates.shapes
    assert (gates.precision, gates.quantized) == ("fp32", False)
    rows, columns = next(iter(shapes.values()))
    assert found["Gates"].value.startswith(
        f"{len(shapes)} of {rows} x {columns}, in layers 0 to 1; "
    )
    assert f"{len(shapes) * rows * columns:,} weights" in found["Gates"].value
    assert "MiB in a worker" in found["Masks"].value


def configured(folder, **quantization):
    """The checkpoint with a `quantization_config`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": quantization}))
    return folder


@pytest.mark.found
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_codes_that_masks_do_not_know_are_refused_before_they_are_loaded(dense, quantizer, named):
    """Some lack what their format needs, and without a configuration no engine knows how."""
    folder = rewritten(dense, QUANTIZERS[quantizer])
    if named:
        configured(folder, quant_method="some", bits=4)
    assert len(quantized_gates(folder)) == 2
    with pytest.raises(SettingsError, match=r"is quantized: model\.layers\.0\.mlp\.gate.*made"):
        served_gates(str(folder))
    found = verdicts(folder)
    assert found["Gates"].verdict == "fail"
    assert "Masks" not in found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_precision_are_no_codes(tmp_path, dtype):
    assert quantized_gates(save_tiny_llama(tmp_path / "model", dtype)) == {}


def test_layers_that_stay_as_they_were_do_not_make_a_model_quantized(dense):
    """Quantizers may leave gates alone, and a tower's codes are of no gate that masks delete."""
    file = dense / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = codes(torch.int8)(tensors[name])
    tensors["vision_tower.layers.0.mlp.gate_proj.weight"] = torch.zeros(4, 4, dtype=torch.int8)
    save_file(tensors, file, {"format": "pt"})
    assert quantized_gates(dense) == {}
    assert served_gates(str(dense))


def test_a_gates_plain_weight_counts_whatever_else_its_module_has(dense):
    """Scales of activations, and the state that Transformer Engine writes, quantize no weight."""
    rewritten(
        dense,
        lambda name, w: {
            f"{name}.weight": w,
            f"{name}.input_scale": torch.ones(1).to(torch.float8_e4m3fn),
            f"{name}._extra_state": torch.zeros(5, dtype=torch.uint8),
        },
    )
    assert quantized_gates(dense) == {}
    assert served_gates(str(dense))


@pytest.mark.parametrize(("kind", "found"), [("phi3", 1), ("mystery", 0)])
def test_a_fused_projection_counts_where_its_gate_is_known(tmp_path, kind, found):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    names = ("qweight", "qzeros", "g_idx")
    sizes = ((8, 16), (2, 16), (8,))
    name = "model.layers.0.mlp.gate_up_proj"
    tensors = {
        f"{name}.{part}": torch.zeros(size, dtype=torch.int32)
        for part, size in zip(names, sizes, strict=True)
    }
    tensors[f"{name}.scales"] = torch.ones(2, 16)
    save_file(tensors, tmp_path / "model.safetensors")
    assert quantized_gates(tmp_path) == dict([(f"{name}.qweight", "I32")][:found])


@pytest.mark.found
def test_quantized_experts_are_not_advised_a_checkpoint_that_is_refused_too(dense):
    """Experts and gates of another kind take no mask, in codes or not."""
    file = dense / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "gate_proj" not in name}
    tensors["model.layers.0.mlp.experts.gate_up_proj_blocks"] = torch.zeros(4, dtype=torch.uint8)
    tensors["model.layers.1.mlp.experts.0.gate_proj.weight"] = torch.zeros(4, 4, dtype=torch.int8)
    tensors["model.layers.1.mlp.shared_expert.gate_proj.weight"] = torch.zeros(4, 4).to(torch.int8)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(SettingsError, match="gate projections of experts alone"):
        served_gates(str(dense))


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "changes", "dense", "experts"),
    [
        ("mixtral", {}, 0, 16),
        ("qwen3_moe", {}, 0, 16),
        ("qwen3_moe", {"mlp_only_layers": [0, 3]}, 2, 8),
    ],
)
def test_gates_of_experts_are_served_with_the_modes_named(tmp_path, kind, changes, dense, experts):
    folder = of_kind(tmp_path / "moe", kind, **EXPERTS, **changes)
    found = verdicts(folder)
    assert (found["Gates"].verdict, found["Experts"].verdict) == ("ok", "ok")
    assert f"gates of {experts} experts in {experts // 4} layers" in found["Experts"].value
    assert "scatter is refused" in found["Experts"].value
    gates = served_gates(str(folder))
    assert (len(gates.shapes), gates.precision) == (dense + experts, "fp32")


def test_shared_experts_are_masked_with_the_others(tmp_path):
    sizes = {**EXPERTS, "shared_expert_intermediate_size": 16}
    shapes = served_gates(str(of_kind(tmp_path / "moe", "qwen2_moe", **sizes))).shapes
    assert shapes["model.layers.0.mlp.shared_expert.gate_proj.weight"] == (16, 32)


REFUSED = [
    ("scatter", {}, "--mask-mode scatter cannot be used.*use delta or auto"),
    ("delta", {"enable_expert_parallel": True}, "--enable-expert-parallel .True. cannot.*remove"),
    ("delta", {"enable_eplb": True}, "--enable-eplb .True. cannot.*remove"),
    ("auto", {"moe_backend": "triton"}, "--moe-backend .'triton'. cannot.*remove"),
    ("auto", {"kernel_config": {"moe_backend": "triton"}}, "--kernel-config .*cannot.*remove"),
    ("auto", {"data_parallel_size": 2}, "--data-parallel-size .2. cannot.*remove"),
]


@pytest.mark.parametrize(("mode", "flags", "says"), REFUSED)
def test_settings_that_experts_cannot_be_served_with_are_one_line(mode, flags, says):
    names = ["model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.experts.0.w1.weight"]
    with pytest.raises(SettingsError, match=says) as caught:
        check_experts("m", names, mode=mode, args=Namespace(**flags))
    assert "\n" not in str(caught.value)
    # A dense model is served with all of them.
    check_experts("m", names[:1], mode=mode, args=Namespace(**flags))


def test_settings_that_experts_are_served_with(monkeypatch):
    given = Namespace(moe_backend="auto", kernel_config=KernelConfig(), data_parallel_size=1)
    name = "model.layers.0.block_sparse_moe.experts.11.w1.weight"
    check_experts("m", [name], mode="delta", args=given)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    with pytest.raises(SettingsError, match="on a GPU they were never tried"):
        check_experts("m", [name], mode="delta", args=given)


def test_a_model_without_gates_is_refused(tmp_path):
    folder = of_kind(tmp_path / "gpt2", "gpt2")
    assert "has no gate projections" in verdicts(folder)["Gates"].value


def test_an_architecture_that_vllm_does_not_know_is_a_warning(dense):
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps({**config, "architectures": ["OwnForCausalLM"]}))
    found = verdicts(dense)
    assert found["Model"].verdict == "warn"
    assert "OwnForCausalLM" in found["Model"].value
    assert found["Gates"].verdict == "ok"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"architectures": []}', '{"architectures": {"a": 1}}']
)
def test_a_configuration_that_says_nothing_is_no_traceback(dense, text):
    (dense / "config.json").write_text(text)
    assert verdicts(dense)["Model"].verdict == "warn"


def test_a_model_of_which_a_part_is_there_is_not_ok(dense):
    """As in the Hub's cache, if a download was broken off."""
    shards = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (dense / "model.safetensors.index.json").write_text(json.dumps(shards))
    found = verdicts(dense)
    assert found["Gates"].verdict == "fail"
    assert "lacks model-2.safetensors, which" in found["Gates"].value


def test_a_damaged_checkpoint_is_named(dense):
    file = dense / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    found = verdicts(dense)
    assert found["Gates"].verdict == "fail"
    assert "truncated or damaged" in found["Gates"].value


def test_weights_that_do_not_fit_are_a_warning(dense, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpu_environment, "free_memory", lambda: 1000)
    found = verdicts(dense)
    assert found["Weights"].verdict == "warn"
    assert "smaller model" in found["Weights"].fix


@pytest.mark.parametrize("model", ["/no/such/folder", "org/never-downloaded", "not a name/at/all"])
def test_what_is_not_there_is_neither_loaded_nor_downloaded(model):
    [found] = doctor_model.findings(model)
    assert (found.verdict, model in found.value) == ("warn", True)


def test_the_report_has_the_model_after_the_host(dense):
    whats = [f.what for f in doctor.examine("", str(dense))]
    assert whats.index("Model") > whats.index("Python")
    assert whats[-1] == "Weights"


def test_serve_ends_before_anything_starts(dense, tmp_path):
    rewritten(dense, QUANTIZERS["INT8"])
    data = tmp_path / "data"
    command = [sys.executable, "-m", "bmt_server", "serve", str(dense), "--data-dir", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert "is quantized" in done.stderr.splitlines()[-1]
    assert "registry" not in done.stderr
    assert not (data / "registry").exists()


@pytest.mark.found
@pytest.mark.parametrize("ignored", [False, True], ids=["all plain", "gates left alone"])
def test_a_configuration_that_would_quantize_plain_gates_is_refused(dense, ignored):
    """Unless other layers have codes: then the quantizer left the gates alone."""
    configured(dense, quant_method="fp8", activation_scheme="dynamic")
    if ignored:
        file = dense / "model.safetensors"
        tensors = load_file(file)
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = codes(torch.float8_e4m3fn)(tensors[name])
        save_file(tensors, file, {"format": "pt"})
        assert not served_gates(str(dense)).quantized
        return
    with pytest.raises(SettingsError, match="would quantize the gate projections"):
        served_gates(str(dense))


@pytest.fixture
def of_text_and_images(tmp_path):
    """A checkpoint of a family whose class in vLLM imports torchvision."""
    config = tiny("gemma3")
    folder = tmp_path / "gemma3"
    architecture_of(config).from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.found
def test_a_class_that_imports_what_is_absent_is_one_line_before_a_weight_is_loaded(
    of_text_and_images, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv(CHILD_ENV, "torchvision")
    monkeypatch.setenv("PYTHONPATH", str(Path(unusable.__file__).with_name("child")))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = verdicts(of_text_and_images)
    line = found["Its class in vLLM"].value
    assert found["Its class in vLLM"].verdict == "fail"
    assert "Gemma3ForConditionalGeneration imports torchvision, which is" in line
    assert "pip install --force-reinstall --no-deps torchvision==0." in line
    assert "\n" not in line
    # A start that fails later, as where vLLM's cache knows the class, has the fix too.
    assert "pip install" in hint("the engine did not start: No module named 'torchvision'")
    assert hint("the engine did not start: no memory") == "the engine did not start: no memory"


def test_a_tower_is_left_alone(of_text_and_images, monkeypatch):
    monkeypatch.setattr(missing_parts, "check_parts", lambda folder: None)
    found = verdicts(of_text_and_images)
    assert found["Gates"].value.startswith("4 of 48 x 32, in layers 0 to 3; ")
    towers = found["Towers"].value
    assert "vision_tower" in towers
    assert "multi_modal_projector" in towers
    assert "language_model" not in towers
    assert "left alone by masks and not loaded" in towers


@pytest.mark.found
def test_headers_are_read_once(dense, monkeypatch):
    # The package has a function of the module's name.
    fingerprint = importlib.import_module("bmt_core.fingerprint")
    read, of = [], fingerprint._header

    def counted(path):
        read.append(path)
        return of(path)

    monkeypatch.setattr(fingerprint, "_header", counted)
    served_gates(str(dense))
    assert len(read) == 1
