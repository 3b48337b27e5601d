"""Push and pull by the real huggingface_hub against a Hub on loopback."""

from __future__ import annotations

import json

import bmt_core
import pytest
from bmt_client import hub as masks

from tests.support.http.fake_server import KEY
from tests.support.http.hub import TOKEN
from tests.support.masks import make_mask


def test_a_pushed_mask_is_pulled(hub, math, program, tmp_path):
    pushed = json.loads(program("push", "math.bmt", "hf://acme/math", "--json").stdout)["data"]
    files = hub.repositories["acme/math"].files()
    assert files["math.bmt"] == math.read_bytes()
    assert pushed["place"] == "hf://acme/math/math.bmt"
    assert (pushed["outcome"], pushed["card"]) == ("created", "written")
    assert pushed["commit"] == hub.repositories["acme/math"].branches["main"]
    (tmp_path / "there").mkdir()
    found = program("pull", "hf://acme/math", "-o", "there", "--json")
    pulled = json.loads(found.stdout)["data"]
    assert (tmp_path / "there" / "math.bmt").read_bytes() == math.read_bytes()
    assert pulled["place"] == f"hf://acme/math@{pushed['commit']}/math.bmt"
    assert pulled["digest"] == pushed["digest"] == bmt_core.load(math).digest
    assert pulled["base"]["fingerprint"] == "ab" * 32


def test_the_token_goes_to_the_hub_alone(hub, math):
    masks.push(math, "hf://acme/math")
    masks.pull("hf://acme/math")
    of_storage = [token for _, path, token in hub.requests if path.startswith("/storage/")]
    assert of_storage == ["", ""]  # one upload, one download
    assert {token for _, path, token in hub.requests if not path.startswith("/storage/")} == {TOKEN}


def test_the_same_push_changes_nothing(hub, math):
    first = masks.push(math, "hf://acme/math")
    again = masks.push(math, "hf://acme/math")
    assert (again.outcome, again.commit) == ("unchanged", first.commit)
    assert len(hub.repositories["acme/math"].messages) == 2  # the first one is the repository's own


def test_a_branch_is_made_and_kept_apart(hub, math, tmp_path):
    masks.push(math, "hf://acme/math")
    other = tmp_path / "other.bmt"
    bmt_core.save(make_mask(1), other)
    lines: list[str] = []
    masks.push(other, "hf://acme/math@exp%2Ftwo/math.bmt", say=lines.append)
    assert any("exp/two" in line for line in lines)
    assert masks.pull("hf://acme/math").data == math.read_bytes()
    assert masks.pull("hf://acme/math@exp%2Ftwo").data == other.read_bytes()
    commit = masks.pull("hf://acme/math").place.revision
    assert masks.pull(f"hf://acme/math@{commit}").data == math.read_bytes()


def test_a_new_repository_is_private_where_asked(hub, math, program):
    found = program("push", math, "hf://acme/secret", "--private", "-m", "First try")
    assert "private" in found.stderr
    assert hub.repositories["acme/secret"].private
    assert hub.repositories["acme/secret"].messages[-1] == "First try"
    program("push", math, "hf://acme/open", "--public")
    assert not hub.repositories["acme/open"].private


def test_a_card_of_somebodys_own_is_kept(hub, math, program):
    own = b"# My words\n"
    hub.add("acme/math", {"README.md": own})
    found = program("push", math, "hf://acme/math")
    assert "README.md" in found.stderr
    assert hub.repositories["acme/math"].files()["README.md"] == own
    program("push", math, "hf://acme/math", "--replace-card")
    card = hub.repositories["acme/math"].files()["README.md"]
    assert own not in card


def test_an_edited_card_is_kept_and_a_written_one_replaced(hub, math, tmp_path):
    masks.push(math, "hf://acme/math")
    repository = hub.repositories["acme/math"]
    card = repository.files()["README.md"].decode()
    bmt_core.save(make_mask(1, method="grpo"), tmp_path / "math.bmt")
    assert masks.push(tmp_path / "math.bmt", "hf://acme/math").card == "written"
    assert repository.files()["README.md"].decode() != card
    edited = repository.files()["README.md"].replace(b"# math", b"# My math")
    repository.commit("main", {"README.md": edited})
    bmt_core.save(make_mask(2), tmp_path / "math.bmt")
    assert masks.push(tmp_path / "math.bmt", "hf://acme/math").card == "kept"
    assert repository.files()["README.md"] == edited


def test_a_second_mask_of_a_repository_is_said(hub, math, program, tmp_path):
    program("push", math, "hf://acme/math")
    found = program("push", math, "hf://acme/math/v2/other.bmt")
    assert "2 masks" in found.stderr
    found = program("pull", "hf://acme/math", exit_code=2)
    assert "hf://acme/math" in found.stderr
    assert "v2/other.bmt" in found.stderr
    program("pull", "hf://acme/math/v2/other.bmt")
    assert (tmp_path / "other.bmt").read_bytes() == math.read_bytes()


def test_another_file_here_is_not_replaced_unasked(hub, math, program, tmp_path):
    masks.push(math, "hf://acme/math")
    program("pull", "hf://acme/math")  # the same file
    bmt_core.save(make_mask(3), math)
    found = program("pull", "hf://acme/math", exit_code=2)
    assert "math.bmt" in found.stderr
    assert bmt_core.load(math) == make_mask(3)
    program("pull", "hf://acme/math", "-o", "math.bmt")
    assert bmt_core.load(math) == make_mask(0)


def test_upload_fetches_from_the_hub(hub, math, program, server, monkeypatch):
    masks.push(math, "hf://acme/Big_Math")
    monkeypatch.setenv("BMT_URL", server.url)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    found = program("upload", "hf://acme/Big_Math", "--alias", "prod", "--json")
    version = json.loads(found.stdout)["data"]
    assert (version["name"], version["digest"]) == ("big_math", make_mask(0).digest)
    assert json.loads(program("show", "big_math:prod", "--json").stdout)["data"]["rev"] == 1
    found = program("upload", "hf://acme/Big_Math/math.bmt", "--name", "m", "--json")
    assert json.loads(found.stdout)["data"]["name"] == "m"
    found = program("upload", "hf://acme/Big_Math", math, "--dry-run", "--json")
    assert [one["name"] for one in json.loads(found.stdout)["data"]] == ["big_math", "math"]


def test_a_file_that_was_fetched_is_there_offline(hub, math, program, monkeypatch, tmp_path):
    masks.push(math, "hf://acme/math")
    place = masks.pull("hf://acme/math").place
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    program("pull", str(place), "-o", tmp_path / "again.bmt")
    assert (tmp_path / "again.bmt").read_bytes() == math.read_bytes()
    program("pull", "hf://acme/math", "-o", tmp_path / "again.bmt", exit_code=7)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("where", ["-", "folder"])
def test_pull_writes_to_stdout_or_a_folder(hub, math, program, tmp_path, where):
    masks.push(math, "hf://acme/math")
    (tmp_path / "folder").mkdir()
    found = program("pull", "hf://acme/math", "-o", where)
    data = found.stdout_bytes if where == "-" else (tmp_path / "folder/math.bmt").read_bytes()
    assert data == math.read_bytes()
