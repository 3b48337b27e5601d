"""Faults of the Hub: each is a typed error in one line, and nothing half done."""

from __future__ import annotations

import json
import sys

import bmt_core
import pytest
from bmt_client import Unavailable, UsageError
from bmt_client import hub as masks
from bmt_client.hub.failures import typed_errors
from huggingface_hub import errors

from tests.support.http.hub import READER, Refused
from tests.support.http.ports import free_port
from tests.support.masks import make_mask


def refused(program, *words, exit_code):
    """Run a command that fails; its error as JSON has it. One line of it is for people."""
    found = program(*words, "--json", exit_code=exit_code)
    error = json.loads(found.stdout)["error"]
    assert error["hint"] is None
    assert [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in found.output
    assert "\n" not in error["message"]
    assert "hf_loopback" not in found.output
    return error


def fail(hub, where, *refusal):
    def act(method, path):
        if where in path:
            raise Refused(*refusal)

    hub.fail = act


def test_no_token(hub, math, program, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    error = refused(program, "push", math, "hf://acme/math", exit_code=3)
    assert (error["type"], error["code"]) == ("AuthenticationError", "hub_no_token")
    assert hub.requests == []


def test_a_token_that_is_refused(hub, math, program, monkeypatch):
    masks.push(math, "hf://acme/math")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    error = refused(program, "pull", "hf://acme/math", exit_code=3)
    assert (error["code"], error["status"]) == ("hub_unauthorized", 401)


def test_a_token_that_may_only_read(hub, math, program, monkeypatch):
    hub.add("acme/math")
    monkeypatch.setenv("HF_TOKEN", READER)
    for place in ("hf://acme/math", "hf://acme/new"):
        error = refused(program, "push", math, place, exit_code=3)
        assert (error["code"], error["status"]) == ("hub_forbidden", 403)
    assert set(hub.repositories) == {"acme/math"}


def test_another_namespace(hub, math, program):
    error = refused(program, "push", math, "hf://other/math", exit_code=3)
    assert error["code"] == "hub_forbidden"


@pytest.mark.parametrize("token", [None, "writer"])
def test_no_such_repository(hub, math, program, monkeypatch, token):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        hub.add("acme/secret", {"m.bmt": math.read_bytes()}, private=True)
    error = refused(program, "pull", "hf://acme/secret", exit_code=4)
    assert error["code"] == "hub_not_found"
    assert ("HF_TOKEN" in error["message"]) == (token is None)


def test_a_gated_repository(hub, math, program, monkeypatch):
    hub.add("acme/gated", {"m.bmt": math.read_bytes()}, gated=True)
    monkeypatch.setenv("HF_TOKEN", READER)
    error = refused(program, "pull", "hf://acme/gated", exit_code=3)
    assert (error["type"], error["code"]) == ("PermissionDenied", "hub_gated")


def test_no_such_revision_or_file(hub, math, program):
    masks.push(math, "hf://acme/math")
    error = refused(program, "pull", "hf://acme/math@v9", exit_code=4)
    assert error["code"] == "hub_revision_unknown"
    assert "v9" in error["message"]
    error = refused(program, "pull", "hf://acme/math/other.bmt", exit_code=4)
    assert error["code"] == "hub_file_unknown"
    error = refused(program, "push", math, "hf://acme/math@refs/pr/3", exit_code=4)
    assert error["code"] == "hub_revision_unknown"


def test_no_mask_or_several(hub, math, program):
    hub.add("acme/empty", {"model.safetensors": b"\0" * 8})
    assert refused(program, "pull", "hf://acme/empty", exit_code=4)["code"] == "hub_no_mask"
    hub.add("acme/many", {f"m{i}.bmt": math.read_bytes() for i in range(12)})
    error = refused(program, "pull", "hf://acme/many", exit_code=2)
    assert error["code"] == "hub_several_masks"
    assert "hf://acme/many/m0.bmt" in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("data", [b"PK\x03\x04 no mask", b"", b"text\n"])
def test_not_a_mask(hub, math, program, tmp_path, data):
    hub.add("acme/zip", {"m.bmt": data})
    refused(program, "pull", "hf://acme/zip", "-o", "out.bmt", exit_code=6)
    assert not (tmp_path / "out.bmt").exists()
    math.write_bytes(data)
    refused(program, "push", math, "hf://acme/new", exit_code=6)
    assert "acme/new" not in hub.repositories


def test_a_file_too_large_is_not_fetched(hub, math, program):
    hub.add("acme/big", {"m.bmt": math.read_bytes()})
    hub.sizes["m.bmt"] = (1 << 30) + 1
    error = refused(program, "pull", "hf://acme/big", exit_code=6)
    assert error["type"] == "TooLarge"
    assert not [path for _, path, _ in hub.requests if "resolve" in path]


def test_a_damaged_cache(hub, math, program):
    masks.push(math, "hf://acme/math")
    place = masks.pull("hf://acme/math").place
    (cached,) = hub.cache.glob(f"*/snapshots/{place.revision}/math.bmt")
    blob = cached.resolve()
    blob.chmod(0o644)
    blob.write_bytes(bmt_core.encode(make_mask(5)))
    error = refused(program, "pull", "hf://acme/math", exit_code=1)
    assert (error["type"], error["code"]) == ("ProtocolError", "hub_damaged")


def test_offline(hub, math, program, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for words in (
        ("push", math, "hf://acme/math"),
        ("pull", "hf://acme/math"),
        ("upload", "hf://acme/math", "--dry-run"),
    ):
        error = refused(program, *words, exit_code=7)
        assert error["code"] == "hub_offline"
        assert "HF_HUB_OFFLINE" in error["message"]
    error = refused(program, "pull", "hf://acme/math/m.bmt", exit_code=7)
    assert error["code"] == "hub_offline"
    assert "cache" in error["message"]
    assert hub.requests == []


def test_a_hub_that_does_not_answer(hub, math, program, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    for words in (("push", math, "hf://acme/math"), ("pull", "hf://acme/math")):
        error = refused(program, *words, exit_code=7)
        assert error["code"] == "hub_unreachable"


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "hub_refused", 6),
        (403, "hub_forbidden", 3),
        (412, "hub_conflict", 5),
        (413, "hub_too_large", 6),
        (500, "hub_unavailable", 7),
    ],
)
def test_an_answer_to_a_commit(hub, math, program, status, code, exit_code):
    fail(hub, "/commit/", status, "", "Not\x1b[31m today")
    error = refused(program, "push", math, "hf://acme/math", exit_code=exit_code)
    assert (error["code"], error["status"]) == (code, status)
    assert "\x1b" not in error["message"]


def test_a_storage_that_refuses(hub, math, program):
    fail(hub, "/storage/", 403, "", "signature expired")
    error = refused(program, "push", math, "hf://acme/math", exit_code=3)
    assert error["code"] == "hub_forbidden"
    assert "math.bmt" not in hub.repositories["acme/math"].files()


def test_a_commit_of_somebody_else_meanwhile(hub, math, program):
    repository = hub.add("acme/math")

    def act(method, path):
        if "/commit/" in path:
            repository.commit("main", {"note.txt": b"x"})

    hub.fail = act
    error = refused(program, "push", math, "hf://acme/math", exit_code=5)
    assert error["code"] == "hub_conflict"
    assert "math.bmt" not in repository.files()


def test_no_token_over_plain_http_elsewhere(hub, math, program, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.com")
    error = refused(program, "push", math, "hf://acme/math", exit_code=2)
    assert error["code"] == "hub_insecure"


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (ConnectionError("refused"), "hub_unreachable"),
        (errors.OfflineModeIsEnabled("HF_HUB_OFFLINE"), "hub_offline"),
    ],
)
def test_a_file_not_in_the_cache_of_an_older_library(monkeypatch, cause, code):
    """Up to huggingface_hub 0.36 its error derives from that of a file that the Hub has not."""

    class Older(errors.HfHubHTTPError):
        def __init__(self, text):
            Exception.__init__(self, text)

    monkeypatch.setattr(errors, "LocalEntryNotFoundError", Older)
    place = masks.parse_place("hf://acme/math/math.bmt")
    with pytest.raises(Unavailable) as error, typed_errors(place, has_token=False):
        raise Older("cannot find the requested files in the local cache") from cause
    assert error.value.code == code


@pytest.mark.parametrize("address", ["http://[::1", "https://", "hub.example.com", "https://h:x"])
def test_an_address_that_is_none(hub, math, program, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    for words in (("push", math, "hf://acme/math"), ("pull", "hf://acme/math")):
        error = refused(program, *words, exit_code=2)
        assert error["code"] == "hub_endpoint"
        assert address in error["message"]


def test_something_that_is_no_hub(hub, math, program, monkeypatch):
    def act(method, path):
        raise Refused(200)

    hub.fail = act
    error = refused(program, "pull", "hf://acme/math", exit_code=1)
    assert error["type"] == "ProtocolError"


def test_huggingface_hub_is_missing(math, program, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for words in (("push", math, "hf://acme/math"), ("pull", "hf://acme/math")):
        error = refused(program, *words, exit_code=2)
        assert error["code"] == "hub_library"
        assert "bmt-adapters[hub]" in error["message"]


@pytest.mark.parametrize(
    "place",
    [
        "hf://",
        "hf://math",
        "hf:/acme/math",
        "hf://acme/",
        "hf://acme/math@",
        "hf://acme/math@../main",
        "hf://acme/math@a b",
        "hf://acme/math/../x.bmt",
        "hf://acme/math//x.bmt",
        "hf://acme/math/a\\b.bmt",
        "hf://acme/math/a\nb.bmt",
        "hf://acme/ma th",
        "hf://acme/-math",
        "hf://acme/math.git",
        "hf://acme/ma--th",
        "hf://datasets/acme/math",
        "hf://spaces/acme/math",
        "hf://acme/math/" + "x" * 2000,
        "https://huggingface.co/acme/math",
    ],
)
def test_places_that_are_none(program, math, place):
    with pytest.raises(UsageError) as error:
        masks.parse_place(place)
    assert error.value.code == "hub_place"
    program("pull", place, exit_code=2)
    program("push", math, place, exit_code=2)


def test_a_push_names_a_mask_of_a_repository(hub, math, program):
    error = refused(program, "push", math, "hf://acme/math/model.safetensors", exit_code=2)
    assert error["code"] == "hub_place"
    error = refused(
        program, "push", math, "hf://acme/math", "--base-model", "no/good/name", exit_code=2
    )
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "repository", "revision", "file"),
    [
        ("hf://acme/math", "acme/math", None, None),
        ("hf://acme/math/", "acme/math", None, None),
        ("hf://models/acme/math@v1", "acme/math", "v1", None),
        ("hf://acme/math@v1/a/b.bmt", "acme/math", "v1", "a/b.bmt"),
        ("hf://acme/math@exp%2Fa/b.bmt", "acme/math", "exp/a", "b.bmt"),
        ("hf://acme/math@refs/pr/1/b.bmt", "acme/math", "refs/pr/1", "b.bmt"),
        ("hf://A_b/m.x_1/modèl @1.bmt", "A_b/m.x_1", None, "modèl @1.bmt"),
    ],
)
def test_places(text, repository, revision, file):
    place = masks.parse_place(text)
    assert (place.repository, place.revision, place.file) == (repository, revision, file)
    assert masks.parse_place(str(place)) == place
