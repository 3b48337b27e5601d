"""Several files and masks in one command, filters of lists, and copies between servers."""

from __future__ import annotations

import hashlib
import json

import bmt_core
import pytest

from tests.support.http.fake_server import KEY, FakeServer, Fault, serving
from tests.support.masks import make_mask


@pytest.fixture
def run(program, server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BMT_URL", server.url)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    for i in range(3):
        bmt_core.save(make_mask(i, zeros=80 + i), tmp_path / f"m{i}.bmt")
    return program


@pytest.mark.found
def test_a_line_for_each_file(run, server, tmp_path):
    lines = run("upload", "m0.bmt", "m1.bmt", "m2.bmt", "--alias", "prod").stdout.splitlines()
    assert [line.split("@")[0] for line in lines] == ["m0", "m1", "m2"]
    assert {name for name, alias in server.aliases if alias == "prod"} == {"m0", "m1", "m2"}
    assert len(run("upload", "m0.bmt", "m1.bmt", "--dry-run").stdout.splitlines()) == 2
    assert run("pin", "m0", "m1").stdout == "m0  pinned\nm1  pinned\n"
    assert run("delete", "m0", "m1", "m2").stdout.count("deleted") == 3
    assert server.latest == {}


@pytest.mark.parametrize(
    ("fault", "code"), [(Fault(401), 3), (Fault(503), 7), (Fault(drop=True), 7)]
)
def test_an_error_of_the_server_ends_the_command(run, server, fault, code):
    server.faults = [None, fault]
    found = run("--retries", "0", "upload", "m0.bmt", "m1.bmt", "m2.bmt", exit_code=code)
    assert found.stdout.startswith("m0@")
    assert "error: m1.bmt: " in found.stderr
    assert "error: not tried: m2.bmt" in found.stderr
    assert len(server.requests) == 2
    server.faults = [None, fault]
    found = run("--json", "--retries", "0", "delete", "m0", "m1", "m2", exit_code=code)
    codes = [one.get("error", {}).get("code") for one in json.loads(found.stdout)["data"]]
    assert codes[0] is None
    assert codes[2] == "not_tried"


def test_files_of_one_name_are_refused(run, server, tmp_path):
    (tmp_path / "M0.bmt").write_bytes((tmp_path / "m0.bmt").read_bytes())
    assert "would both be m0" in run("upload", "m0.bmt", "M0.bmt", exit_code=2).stderr
    assert server.requests == []


@pytest.fixture
def listed(run, server):
    """Three masks, of which m1 is pinned and m2 has an alias; creation in another order."""
    run("upload", "m0.bmt", "m1.bmt", "m2.bmt")
    run("pin", "m1")
    run("alias", "m2", "prod", "m2")
    for name, created in (("m0", "2026-11-03"), ("m1", "2026-11-01"), ("m2", "2026-11-02")):
        server.versions[name][0]["created"] = f"{created}T10:00:00Z"

    def names(*words):
        return [mask["name"] for mask in json.loads(run("list", *words, "--json").stdout)["data"]]

    return names


@pytest.mark.found
@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), ["m0", "m1", "m2"]),
        (("m[12]",), ["m1", "m2"]),
        (("m0", "*2"), ["m0", "m2"]),
        (("x*",), []),
        (("--pinned",), ["m1"]),
        (("--alias", "prod"), ["m2"]),
        (("--base", "tiny"), ["m0", "m1", "m2"]),
        (("--base", "other"), []),
        (("--limit", "2"), ["m0", "m1"]),
        (("--reverse",), ["m2", "m1", "m0"]),
        (("--sort", "created"), ["m1", "m2", "m0"]),
        (("--sort", "created", "--reverse", "--limit", "1"), ["m0"]),
        (("--sort", "zeros", "--reverse"), ["m2", "m1", "m0"]),
        (("--sort", "versions", "--limit", "2"), ["m0", "m1"]),
    ],
)
def test_filters_limit_and_order(listed, words, names):
    assert listed(*words) == names


@pytest.mark.found
def test_a_pipe_has_one_line_for_a_row_and_tabs_between(run, server):
    long = "n" * 128
    run("upload", "m0.bmt", "--name", long, *(f"--alias={c * 100}" for c in "abcdefgh"))
    for words in (("list",), ("versions", long), ("models",)):
        lines = run(*words).stdout.splitlines()
        assert {line.count("\t") for line in lines} == {lines[0].count("\t")}
        assert "…" not in "".join(lines)
    assert all(c * 100 in run("list").stdout for c in "abcdefgh")


@pytest.mark.found
def test_a_value_longer_than_any_terminal_is_one_line(run, server, tmp_path):
    mask = make_mask(1, text="x" * 12_000, lines="a\nb\tc")
    bmt_core.save(mask, tmp_path / "m5.bmt")
    run("upload", "m5.bmt")
    shown = run("show", "m5").stdout
    assert "x" * 12_000 in shown
    assert "a\\nb\\tc" in shown


def test_colors_by_force_do_not_make_a_pipe_a_terminal(run, server, monkeypatch):
    run("upload", "m0.bmt", "--alias", "a" * 90)
    plain = run("list").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    assert run("list").stdout == plain


@pytest.fixture
def other(monkeypatch):
    """A second server, with another key."""
    fake = FakeServer()
    fake.shows_key = True
    fake.key = "bmt_key-of-the-other-server"
    with serving(fake):
        yield fake


@pytest.mark.found
def test_copies_are_verified_and_change_nothing_twice(run, server, other, monkeypatch):
    run("upload", "m0.bmt", "m1.bmt")
    # The key of this server is not sent to the other one.
    run("copy", "m0", "--to", other.url, exit_code=3)
    assert all(KEY not in str(headers) for _, _, headers in other.requests)
    monkeypatch.setenv("BMT_TO_API_KEY", other.key)
    lines = run("copy", "m0", "m1:latest", "--to", other.url, "--alias", "prod").stdout.splitlines()
    assert [line.split("@")[0] for line in lines] == ["m0", "m1"]
    assert other.latest == server.latest
    for name in ("m0", "m1"):
        sent, stored = server.versions[name][0], other.versions[name][0]
        assert other.blobs[stored["file_digest"]] == server.blobs[sent["file_digest"]]
    again = json.loads(run("copy", "m0", "--to", other.url, "--json").stdout)["data"]
    assert (again["outcome"], again["from"], again["to"]) == ("unchanged", server.url, other.url)
    run("copy", "m0", "--to", other.url, "--name", "first", "--if-new")
    assert other.latest["first"] == server.latest["m0"]
    run("copy", "m0", "--to", other.url, "--name", "first", "--if-new", exit_code=5)
    assert run("copy", "m0", "absent", "--to", other.url, exit_code=4).stdout.startswith("m0@")
    run("copy", "m0", "--to", server.url, exit_code=2)


def test_a_damaged_copy_is_not_stored(run, server, other, monkeypatch):
    monkeypatch.setenv("BMT_TO_API_KEY", other.key)
    run("upload", "m0.bmt")
    digest = server.versions["m0"][0]["file_digest"]
    server.blobs[digest] = server.blobs[digest][:-1] + b"?"
    assert "file digest" in run("copy", "m0", "--to", other.url, exit_code=1).stderr
    # A mask that is another one than its version says.
    data = bmt_core.encode(make_mask(7))
    server.versions["m0"][0]["bytes"] = len(data)
    server.versions["m0"][0]["file_digest"] = hashlib.sha256(data).hexdigest()
    server.blobs[hashlib.sha256(data).hexdigest()] = data
    assert "mask digest" in run("copy", "m0", "--to", other.url, exit_code=1).stderr
    assert other.latest == {}


def test_a_copy_to_a_profile(run, server, other, monkeypatch):
    run("upload", "m0.bmt")
    run("--url", other.url, "login", "--profile", "prod", stdin=f"{other.key}\n")
    run("copy", "m0", "--to", "prod")
    assert list(other.latest) == ["m0"]
    monkeypatch.delenv("BMT_API_KEY")
    assert "m0" in run("--url", "prod", "list").stdout
