"""`bmt-server family`: the checkpoints of one base, and what is no copy of it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import bmt_core
import pytest
import redis
import torch
from bmt_server.cli.family import kept_family
from bmt_server.cli.main import app
from bmt_server.quantization.family import Family, FamilyError, Identity, identify
from bmt_server.quantization.kinship import LIMITS, compare
from bmt_server.settings import SettingsError
from bmt_server.vllm_integration.checkpoint import served_gates
from bmt_server.vllm_integration.start.quantized_bases import check_quantized
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.support.quantized.copies import KINDS, quantize
from tests.support.tiny_model import save_tiny_llama

SHAPE = {"hidden_size": 128, "intermediate_size": 128}
GATE = "model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("base") / "model", torch.bfloat16, **SHAPE)


@pytest.fixture(scope="module")
def int8(base, tmp_path_factory):
    return quantize(base, tmp_path_factory.mktemp("int8") / "model", "int8")


def family_of(base, **members):
    folders = {name: str(folder) for name, folder in members.items()}
    return compare("base", str(base), folders, lambda line: None)


def changed(folder, target, change):
    """A copy of a checkpoint whose tensors `change` edits in place."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_copies_of_every_kind_are_members(base, tmp_path):
    folders = {kind: quantize(base, tmp_path / kind, kind) for kind in KINDS}
    family = family_of(base, **folders)
    assert family.base.precision == "bf16"
    assert family.base.fingerprint == bmt_core.fingerprint(base)
    for member in family.members:
        assert 0 < member.distance <= member.worst <= LIMITS[member.precision]
        assert not member.column_scales
        served = served_gates(str(folders[member.model]))
        assert served.shapes == served_gates(str(base)).shapes
        assert (served.precision, served.quantized) == (member.precision, True)
    path = tmp_path / "family.json"
    family.write(path)
    assert Family.read(path) == family
    for kind, folder in folders.items():
        found = identify(str(folder), kind, quantized=True, family=str(path))
        assert found.base == family.base.fingerprint
        assert found.own == bmt_core.fingerprint(folder)
    assert identify(str(base), "bf16", quantized=False, family=str(path)).own == found.base


def test_columns_that_awq_scales_are_the_same_positions(base, tmp_path):
    """The factor of a column is divided out of the norm before the gate."""
    factors = torch.rand(128) * 3 + 0.2

    def scale(tensors):
        for name in tensors:
            if name.endswith(("gate_proj.weight", "up_proj.weight")):
                tensors[name] = (tensors[name].float() * factors).bfloat16()
            if name.endswith("post_attention_layernorm.weight"):
                tensors[name] = (tensors[name].float() / factors).bfloat16()

    smoothed = changed(base, tmp_path / "smoothed", scale)
    (member,) = family_of(base, awq=quantize(smoothed, tmp_path / "awq", "awq")).members
    assert member.column_scales
    assert member.worst <= LIMITS["awq-int4"]


def another_seed(base, tmp_path):
    """As a fine-tune would be: other weights of the same shapes."""
    other = save_tiny_llama(tmp_path / "other", torch.bfloat16, 1, **SHAPE)
    return quantize(other, tmp_path / "q", "int8"), "made from another checkpoint"


def rotated(base, tmp_path):
    turn, _ = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))

    def rotate(tensors):
        name = f"{GATE}.weight"
        tensors[name] = (tensors[name].float() @ turn).bfloat16()

    folder = changed(base, tmp_path / "turned", rotate)
    return quantize(folder, tmp_path / "q", "int8"), "rotated"


def permuted(base, tmp_path):
    def permute(tensors):
        tensors[f"{GATE}.weight"] = tensors[f"{GATE}.weight"].flip(0)

    folder = changed(base, tmp_path / "flipped", permute)
    return quantize(folder, tmp_path / "q", "int8"), "mean other weights"


def a_fine_tune(base, tmp_path):
    def tune(tensors):
        tensors["model.embed_tokens.weight"] *= 1.02

    folder = changed(base, tmp_path / "tuned", tune)
    return quantize(folder, tmp_path / "q", "int8"), "embed_tokens.weight, which is not quantized"


def other_layers(base, tmp_path):
    other = save_tiny_llama(tmp_path / "deep", torch.bfloat16, num_hidden_layers=3, **SHAPE)
    return quantize(other, tmp_path / "q", "int8"), "other gates: 3"


def no_norm(base, tmp_path):
    folder = quantize(base, tmp_path / "whole", "int8")
    lacking = changed(folder, tmp_path / "q", lambda tensors: tensors.pop("model.norm.weight"))
    return lacking, "lacks model.norm.weight"


def not_quantized(base, tmp_path):
    return base, "has no quantized gate"


STRANGERS = (another_seed, rotated, permuted, a_fine_tune, other_layers, no_norm, not_quantized)


@pytest.mark.parametrize("make", STRANGERS)
def test_what_is_no_copy_is_refused_by_name(base, tmp_path, make):
    folder, reason = make(base, tmp_path)
    with pytest.raises(FamilyError, match=f"stranger.*{reason}"):
        family_of(base, stranger=folder)


def test_a_base_in_codes_has_no_family(int8):
    with pytest.raises(FamilyError, match="name the 16-bit checkpoint"):
        family_of(int8, copy=int8)


def test_a_quantized_checkpoint_without_its_family_is_refused(base, int8, tmp_path):
    with pytest.raises(FamilyError, match=r"`bmt-server family BASE .* --family family.json"):
        identify(str(int8), "int8", quantized=True, family="")
    path = tmp_path / "family.json"
    family = family_of(base, copy=int8)
    replace(family, members=()).write(path)
    with pytest.raises(FamilyError, match=r"--family .* has none of it, but base; add it"):
        identify(str(int8), "int8", quantized=True, family=str(path))


def document(**changes):
    entry = {"model": "m", "fingerprint": "ab" * 32, "precision": "bf16"}
    return {"format": "bmt-family", "version": 1, "base": entry, "members": [], **changes}


BAD = {
    "no JSON": "{",
    "a list": "[]",
    "another format": json.dumps(document(format="x")),
    "a later version": json.dumps(document(version=2)),
    "no members": json.dumps(document(members={})),
    "a short fingerprint": json.dumps(document(base={**document()["base"], "fingerprint": "ab"})),
    "a label with a quote": json.dumps(document(base={**document()["base"], "precision": 'a"b'})),
    "an unknown field": json.dumps(document(base={**document()["base"], "x": 1})),
    "too deep": "[" * 100_000,
    "too long": " " * ((1 << 20) + 1),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_damaged_manifest_is_one_line(tmp_path, text):
    path = tmp_path / "family.json"
    path.write_text(text)
    with pytest.raises(FamilyError, match="--family"):
        Family.read(path)
    path.unlink()
    with pytest.raises(FamilyError, match="cannot be read"):
        Family.read(path)
    path.write_text(json.dumps(document()))
    assert Family.read(path).members == ()


def test_what_this_host_cannot_serve_is_refused_before_it_is_loaded(
    base, int8, tmp_path, monkeypatch
):
    gates = served_gates(str(int8))
    check_quantized(str(int8), gates, mode="auto", dtype="bfloat16")
    with pytest.raises(SettingsError, match="--mask-mode scatter"):
        check_quantized(str(int8), gates, mode="scatter", dtype="bfloat16")

    awq = str(quantize(base, tmp_path / "awq", "awq"))
    with pytest.raises(SettingsError, match="--dtype is float32"):
        check_quantized(awq, served_gates(awq), mode="auto", dtype="float32")

    int4 = str(quantize(base, tmp_path / "int4", "int4"))
    with pytest.raises(SettingsError, match="computes in 16 bits alone, and --dtype is float32"):
        check_quantized(int4, served_gates(int4), mode="auto", dtype="float32")

    fp8 = str(quantize(base, tmp_path / "fp8", "fp8"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(SettingsError, match="CPUs with AMX alone"):
        check_quantized(fp8, served_gates(fp8), mode="auto", dtype="bfloat16")

    config = json.loads((int8 / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    inputs = changed(int8, tmp_path / "w8a16", lambda tensors: None)
    (inputs / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="W8A8"):
        check_quantized(str(inputs), gates, mode="auto", dtype="bfloat16")


def test_the_command_writes_what_serve_reads(base, int8, tmp_path):
    """And nothing for a checkpoint that is no copy."""
    out = tmp_path / "family.json"
    run = CliRunner().invoke
    done = run(app, ["family", str(base), str(int8), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    assert Family.read(out).includes(bmt_core.fingerprint(int8))
    assert json.loads(done.stdout)["members"][0]["precision"] == "int8"
    out.unlink()
    done = run(app, ["family", str(base), str(base), "--out", str(out)])
    assert done.exit_code == 1
    assert "has no quantized gate" in done.stderr
    assert not out.exists()


def test_a_registry_keeps_the_family(base, int8, tmp_path, valkey):
    """Servers of its members need no file; a second member is added, and the first one stays."""
    run, url = CliRunner().invoke, valkey.url
    own = bmt_core.fingerprint(int8)
    assert kept_family(url, own) is None
    awq = quantize(base, tmp_path / "awq", "awq")
    for member in (int8, awq):
        command = ["family", str(base), str(member), "--registry", url]
        done = run(app, [*command, "--out", str(tmp_path / "family.json")])
        assert done.exit_code == 0, done.stderr
    found = kept_family(url, own)
    assert found is not None
    assert [member.precision for member in found.members] == ["awq-int4", "int8"]
    kept = partial(kept_family, url)
    identity = identify(str(int8), "int8", quantized=True, family="", kept=kept)
    assert identity == Identity(bmt_core.fingerprint(base), own)
    # One that is in no family, a manifest of a later version, and a registry that is away.
    with pytest.raises(FamilyError, match="bmt-server family BASE"):
        identify("x", "int8", quantized=True, family="", kept=kept, fingerprint=lambda _: "0" * 64)
    with redis.Redis.from_url(url) as client:
        client.hset("{bmt}:families", "1" * 64, json.dumps({"format": "bmt-family", "version": 9}))
    assert kept_family(url, own) == found
    with pytest.raises(FamilyError, match="does not answer"):
        kept_family("redis://127.0.0.1:9", own)
