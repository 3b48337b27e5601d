"""Parsing of the server's JSON, from servers older and newer than the client."""

from __future__ import annotations

import json

import pytest
from bmt_client import Alias, MaskInfo, ModelInfo, Page, ProtocolError, Upload, Version
from bmt_client._files import destination
from bmt_client._names import name_from_path

FULL = {
    "name": "math",
    "tenant": "default",
    "digest": "3f" * 32,
    "file_digest": "4e" * 32,
    "rev": 4,
    "id": 9,
    "created": "2026-11-01T10:00:00Z",
    "bytes": 100,
    "zeros": 5,
    "sparsity": 0.002,
    "base": {"model_id": "m", "fingerprint": "5d" * 32},
    "aliases": ["latest", "prod"],
    "canary_of": {"prod": 5.0},
    "shadow_of": {},
    "parent": "6c" * 32,
    "metadata": {"eval": {"accuracy": 0.9}},
    "model": "math@3f3f3f3f3f3f",
    "pinned": True,
    "expires": "2026-11-02T10:00:00+00:00",
    "same_chat_template": False,
    "imported_from": "hf://org/masks@main/math.bmt",
}


def test_a_version_round_trips():
    assert json.loads(json.dumps(Version.from_json(FULL).as_dict())) == FULL


def test_fields_of_a_newer_server_are_ignored():
    base = {**FULL["base"], "new": 1}
    assert Version.from_json({**FULL, "base": base, "new": [1]}) == Version.from_json(FULL)


def test_a_build_before_0_1_calls_the_sparsity_density():
    former = {("density" if key == "sparsity" else key): value for key, value in FULL.items()}
    assert Version.from_json(former) == Version.from_json(FULL)
    assert Version.from_json({**FULL, "density": 0.9}).sparsity == FULL["sparsity"]


def test_fields_missing_in_an_older_server_have_defaults():
    found = Version.from_json({"name": "math", "digest": "3f" * 32, "parent": None, "base": None})
    assert (found.model, found.aliases, found.rev) == ("math@3f3f3f3f3f3f", (), 0)


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        (Version, {}),
        (Version, {"name": "math"}),
        (Version, {"name": 3, "digest": "d"}),
        (Version, {"name": "math", "digest": ""}),
        (Version, {"name": "math", "digest": "d", "base": "x"}),
        (Version, {"name": "math", "digest": "d", "aliases": 3}),
        (Version, []),
        (Version, None),
        (MaskInfo, {"digest": "d"}),
        (Alias, {"name": "a", "alias": "b"}),
        (ModelInfo, {"object": "model"}),
    ],
)
def test_identifying_fields_are_required(model, raw):
    with pytest.raises(ProtocolError, match=r"JSON object|lacks a field"):
        model.from_json(raw)


def test_versions_are_hashable_and_frozen():
    assert len({Version.from_json(FULL), Version.from_json(FULL)}) == 1
    assert len({Upload.from_json(FULL), MaskInfo.from_json(FULL)}) == 2
    with pytest.raises(AttributeError):
        Version.from_json(FULL).rev = 3


@pytest.mark.parametrize(
    ("raw", "limit", "after"),
    [
        ({"data": []}, 2, None),
        ({"data": [FULL]}, 2, None),
        ({"data": [FULL, FULL]}, 2, "math"),
        ({"data": [FULL], "has_more": True}, 2, "math"),
        ({"data": [FULL, FULL], "has_more": False}, 2, None),
        ({"data": [], "has_more": True}, 2, None),
    ],
)
def test_pages_name_the_start_of_the_next_one(raw, limit, after):
    assert Page.from_json(raw, Version, "name", limit).next == after


def test_a_page_without_data_is_an_error():
    with pytest.raises(ProtocolError, match="data"):
        Page.from_json({"items": []}, Version, "name", 2)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("math.bmt", "math"),
        ("Math_v2.bmt", "math_v2"),
        ("my  mask (3).bmt", "my-mask-3"),
        ("v1.2.bmt", "v1.2"),
        ("a__b--c.bmt", "a-b-c"),
        ("-x-.bmt", "x"),
        ("a" * 200 + ".bmt", "a" * 128),
        ("noext", "noext"),
    ],
)
def test_file_names_become_mask_names(tmp_path, file, name):
    from bmt_client._names import mask_name

    assert mask_name(name_from_path(tmp_path / file)) == name


def test_the_path_of_a_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(destination(None, "math")) == "math.bmt"
    assert destination(tmp_path, "math") == tmp_path / "math.bmt"
    assert destination(tmp_path / "x", "math") == tmp_path / "x"
