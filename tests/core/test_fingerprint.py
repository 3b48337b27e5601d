"""A fingerprint covers all tensors of a checkpoint, and the fields of its config are compared."""

from __future__ import annotations

import json
import os
import struct

import bmt_core
import pytest
from bmt_core.config import BASE_CONFIG, arithmetic, config_warning
from bmt_core.mask import dump_metadata

Tensor = tuple[str, str, list[int], bytes]
TENSORS: list[Tensor] = [
    ("model.layers.0.mlp.gate_proj.weight", "BF16", [4, 3], bytes(range(24))),
    ("model.layers.1.mlp.gate_proj.weight", "BF16", [4, 3], bytes(range(24, 48))),
    ("model.norm.weight", "F32", [2], bytes(8)),
    ("nothing", "F32", [0, 3], b""),
]


def write(path, tensors, *, metadata=None, raw_header=None, cut=None):
    header, body = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode() if raw_header is None else raw_header
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes((struct.pack("<Q", len(text)) + text + body)[:cut])
    return path.parent


@pytest.fixture
def whole(tmp_path):
    return write(tmp_path / "whole" / "model.safetensors", TENSORS)


def test_sharding_order_and_metadata_do_not_matter(tmp_path, whole):
    reverse = write(tmp_path / "reverse" / "m.safetensors", TENSORS[::-1], metadata={"a": "b"})
    for index, tensor in enumerate(TENSORS):
        shards = write(tmp_path / "shards" / f"m-{index}.safetensors", [tensor])
    (shards / "config.json").write_text("{}")
    assert (
        bmt_core.fingerprint(whole) == bmt_core.fingerprint(reverse) == bmt_core.fingerprint(shards)
    )
    assert bmt_core.geometry(whole) == bmt_core.geometry(shards)
    assert bmt_core.geometry(whole) == {t[0]: (4, 3) for t in TENSORS[:2]}
    assert bmt_core.geometry(whole, r"norm|nothing") == {}


def test_fused_gates_are_named_by_their_rows(tmp_path):
    fused: list[Tensor] = [
        ("model.layers.0.mlp.gate_up_proj.weight", "I8", [6, 2], bytes(range(12))),
        # Not a text model's.
        ("model.vision_tower.layers.0.mlp.gate_up_proj.weight", "I8", [6, 2], bytes(range(12))),
    ]
    folder = write(tmp_path / "c" / "m.safetensors", fused)
    rows = "model.layers.0.mlp.gate_up_proj.weight[0:3]"
    config = folder / "config.json"
    for text, expected in (
        ('{"model_type": "phi3"}', {rows: (3, 2)}),
        ('{"model_type": "x", "text_config": {"model_type": "glm4"}}', {rows: (3, 2)}),
        # An unknown order of gate and up projection is not guessed.
        ('{"model_type": "phi9"}', {}),
        ('{"model_type": ["phi3"]}', {}),
        ("[]", {}),
        ("{", {}),
    ):
        config.write_text(text)
        assert bmt_core.geometry(folder) == expected
    assert set(bmt_core.geometry(folder, "")) == {name for name, *_ in fused}


@pytest.mark.parametrize("kind", ["own", "fused"])
@pytest.mark.parametrize("within", [False, True])
def test_blocks_that_predict_further_tokens_have_no_gates_of_text(tmp_path, kind, within):
    """As in checkpoints of Qwen 3.5 and MiMo by their name, and of GLM-OCR after the last layer."""
    leaf, rows = {
        "own": ("mlp.gate_proj.weight", ""),
        "fused": ("mlp.gate_up_proj.weight", "[0:3]"),
    }[kind]
    blocks = ("model.layers.1", "mtp.layers.0", "model.mtp_layers.0", "model.mtp.layers.0")
    tensors: list[Tensor] = [
        (f"{block}.{leaf}", "I8", [6, 2], bytes(range(12))) for block in (*blocks, "model.layers.2")
    ]
    folder = write(tmp_path / "c" / "m.safetensors", tensors)
    part = {"model_type": "glm_ocr_text", "num_hidden_layers": 2}
    config = {"num_hidden_layers": 9, "text_config": part} if within else part
    (folder / "config.json").write_text(json.dumps(config))
    assert set(bmt_core.geometry(folder)) == {f"model.layers.1.{leaf}{rows}"}
    # A number of layers that is not known leaves none out.
    (folder / "config.json").write_text('{"model_type": "phi3"}')
    assert len(bmt_core.geometry(folder)) == 2


def test_every_property_of_every_tensor_counts(tmp_path, whole):
    seen = {bmt_core.fingerprint(whole)}

    def changed(tensors):
        seen.add(bmt_core.fingerprint(write(tmp_path / "x" / "m.safetensors", tensors)))

    count = 1
    for index, (name, dtype, shape, data) in enumerate(TENSORS):
        others = TENSORS[:index] + TENSORS[index + 1 :]
        variants = [
            [(name + "x", dtype, shape, data)],
            [(name, "I" + dtype[1:], shape, data)],
            [(name, dtype, [*shape, 1], data)],
            [(name, dtype, shape[::-1], data)] if shape != shape[::-1] else [],
            [],
        ]
        for at in range(len(data)):
            flipped = bytearray(data)
            flipped[at] ^= 1
            variants.append([(name, dtype, shape, bytes(flipped))])
        for variant in variants:
            changed(others + variant)
        count += len(variants) - (shape == shape[::-1])
    swapped = [(*TENSORS[0][:3], TENSORS[1][3]), (*TENSORS[1][:3], TENSORS[0][3]), *TENSORS[2:]]
    changed(swapped)
    assert len(seen) == count + 1


ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"a":1}',
        b'{"a":{}}',
        b'{"a":{"dtype":"F32","shape":[2]}}',
        b'{"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"\\ud800","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,1e3]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,0.5]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":["0","8"]}}',
        b'{"a":{"dtype":"F32","shape":[' + b"1" * 5000 + b'],"data_offsets":[0,8]}}',
        f'{{"a":{ENTRY},"a":{ENTRY}}}'.encode(),
        f'{{"\\ud800":{ENTRY}}}'.encode(),
    ],
)
def test_a_damaged_header_is_an_error(tmp_path, header):
    body: list[Tensor] = [("a", "F32", [2], bytes(8))]
    folder = write(tmp_path / "c" / "m.safetensors", body, raw_header=header)
    for read in (bmt_core.fingerprint, bmt_core.geometry):
        with pytest.raises(bmt_core.CheckpointError):
            read(folder)


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "c" / "m.safetensors"
    write(path, TENSORS)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(bmt_core.CheckpointError):
            bmt_core.fingerprint(path.parent)


def test_other_folders_are_an_error(tmp_path, whole):
    empty = tmp_path / "empty"
    empty.mkdir()
    folder = tmp_path / "folder"
    (folder / "m.safetensors").mkdir(parents=True)
    dangling = tmp_path / "dangling"
    dangling.mkdir()
    (dangling / "m.safetensors").symlink_to(tmp_path / "gone")
    for path in (empty, folder, dangling, tmp_path / "gone", whole / "model.safetensors"):
        with pytest.raises(bmt_core.CheckpointError):
            bmt_core.fingerprint(path)
    write(whole / "left-over.safetensors", TENSORS[:1])
    with pytest.raises(bmt_core.CheckpointError, match="left-over"):
        bmt_core.fingerprint(whole)


def test_links_are_followed(tmp_path, whole):
    """The cache of Hugging Face is a folder of links."""
    links = tmp_path / "links"
    links.mkdir()
    (links / "model.safetensors").symlink_to(whole / "model.safetensors")
    assert bmt_core.fingerprint(links) == bmt_core.fingerprint(whole)


def test_the_cache_is_used_until_a_file_changes(tmp_path, whole):
    cache = tmp_path / "a" / "cache"
    first = bmt_core.fingerprint(whole, cache_dir=cache)
    assert first == bmt_core.fingerprint(whole)
    (note,) = cache.iterdir()
    note.write_text("0" * 64)
    assert bmt_core.fingerprint(whole, cache_dir=cache) == "0" * 64
    for damage in (b"", b"\xff\xfe", b"x" * 64, b"0" * 63):
        note.write_bytes(damage)
        assert bmt_core.fingerprint(whole, cache_dir=cache) == first
        assert note.read_text() == first
    path = whole / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert bmt_core.fingerprint(whole, cache_dir=cache) == bmt_core.fingerprint(whole) != first
    assert not list(cache.glob("*.tmp"))


def test_an_unwritable_cache_is_ignored(tmp_path, whole):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert bmt_core.fingerprint(whole, cache_dir=blocked) == bmt_core.fingerprint(whole)


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "layer_types": ["full_attention"] * 30,
    "transformers_version": "4.40.0",
}


def warned(tmp_path, trained, found):
    for name, config in (("trained", trained), ("found", found)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return config_warning(
        {BASE_CONFIG: arithmetic(tmp_path / "trained")}, arithmetic(tmp_path / "found")
    )


@pytest.mark.found
@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"rms_norm_eps": 0.1}, "rms_norm_eps 1e-05 (here 0.1)"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope.factor absent (here 4.0)"),
        ({"rope_theta": 5e5}, "rope.rope_theta 10000.0 (here 500000.0)"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_attention_heads": 2}, "num_attention_heads 4 (here 2)"),
        ({"layer_types": ["sliding_attention"] * 30}, "layer_types"),
        ({"some_new_multiplier": 0}, "some_new_multiplier absent (here 0)"),
        ({"text_config": {"final_logit_softcapping": 30.0}}, "text_config.final_logit_softcapping"),
    ],
)
def test_a_changed_arithmetic_is_one_line_with_both_values(tmp_path, change, shown):
    line = warned(tmp_path, LLAMA, {**LLAMA, **change})
    assert shown in line
    assert "\n" not in line
    assert len(line) < 600
    assert shown.split()[0] in warned(tmp_path, {**LLAMA, **change}, LLAMA)


def test_a_file_that_says_the_same_is_no_change(tmp_path):
    again = {
        k: v for k, v in LLAMA.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    again |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "dtype": "float32",
        "transformers_version": "5.19.0",
        "mlp_bias": False,
        "eos_token_id": [2, 3],
        "attention_dropout": 0.0,
        "use_cache": True,
        "_name_or_path": "/somewhere",
    }
    assert warned(tmp_path, LLAMA, again) is None
    assert warned(tmp_path, again, LLAMA) is None
    old = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {**again, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
    assert warned(tmp_path, old, new) is None


def test_a_field_without_bounds_is_metadata(tmp_path):
    """Falcon-H1's time_step_limit, as transformers 4 wrote it and as 5 writes it."""
    found = []
    for number in ("Infinity", '{"__float__": "Infinity"}'):
        (tmp_path / "config.json").write_text(f'{{"time_step_limit": [0.0, {number}], "x": NaN}}')
        found.append(arithmetic(tmp_path))
    assert json.loads(dump_metadata({BASE_CONFIG: found[0]}))[BASE_CONFIG] == found[1]
    assert config_warning({BASE_CONFIG: found[0]}, found[1]) is None
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, 1.0], "x": NaN}')
    assert "time_step_limit" in config_warning({BASE_CONFIG: found[0]}, arithmetic(tmp_path))


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"a": '])
def test_what_cannot_be_compared_is_not_judged(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert arithmetic(tmp_path) == {}
    assert config_warning({BASE_CONFIG: {}}, {"a": 2}) is None
    assert config_warning({BASE_CONFIG: {"a": 1}}, {}) is None
    for other in ({}, {BASE_CONFIG: None}, {BASE_CONFIG: "x"}, {BASE_CONFIG: [1]}):
        assert config_warning(other, {"a": 1}) is None


def test_a_line_of_a_hostile_mask_is_one_line(tmp_path):
    hostile = {f"a\n\x1b[31m{n}" + "x" * 500: "y\r\n" * 500 for n in range(50)}
    line = config_warning({BASE_CONFIG: hostile}, {"a": 1})
    assert line.isprintable()
    assert len(line) < 1000
