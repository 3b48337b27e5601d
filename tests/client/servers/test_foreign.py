"""Every command against servers that are no bmt-server, and against none."""

from __future__ import annotations

import json
import ssl
from contextlib import ExitStack

import pytest
import trustme

from tests.support.http.commands import all_commands, stdin, words, write_files
from tests.support.http.fake_server import KEY, FakeServer, serving
from tests.support.http.foreign import KINDS, foreign

# The list of models is the same in every server of OpenAI's API.
ALIKE = {("vllm", "models")}


@pytest.fixture(scope="module")
def urls():
    """Addresses of one server of each kind."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    found = {}
    with _all(found), serving(FakeServer(), tls) as unknown:
        yield {**found, "wrong_ca": unknown.url, "no_tls": found["html"].replace("http", "https")}


def _all(found):
    stack = ExitStack()
    for kind in (*KINDS, "closed", "hangs"):
        found[kind] = stack.enter_context(foreign(kind))
    return stack


@pytest.mark.found
@pytest.mark.parametrize(
    ("kind", "as_json"),
    [
        *((kind, True) for kind in (*KINDS, "closed", "hangs", "wrong_ca", "no_tls")),
        ("html", False),
        ("closed", False),
    ],
)
def test_every_command_fails_in_one_line(program, urls, tmp_path, monkeypatch, kind, as_json):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    write_files(tmp_path)
    wrong = {}
    for name in all_commands():
        if (kind, name) in ALIKE:
            continue
        flags = ["--retries", "0", "--timeout", "0.1", *(["--json"] if as_json else [])]
        found = program(*flags, *words(name, urls[kind]), stdin=stdin(name), exit_code=None)
        lines = found.stderr.splitlines()
        fine = (
            found.exit_code not in (0, 2)
            and len([line for line in lines if line.startswith("error: ")]) == 1
            and all(line.startswith(("error: ", "hint: ")) for line in lines)
            and len(lines) <= 2
        )
        if as_json:
            document = json.loads(found.stdout)
            fine = fine and set(document) == {"schema", "error"} and document["error"]["message"]
        else:
            fine = fine and found.stdout == ""
        if not fine:
            wrong[name] = (found.exit_code, found.stdout, found.stderr)
    assert not wrong
    # `login` stores no key that no bmt-server has accepted, and nothing is downloaded.
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["math.bmt"]


@pytest.mark.found
@pytest.mark.parametrize("kind", ["vllm", "fastapi", "html_404"])
@pytest.mark.parametrize("name", ["list", "show", "upload", "delete", "login", "status", "whoami"])
def test_another_server_is_named_as_such(program, urls, tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    command = words(name, urls[kind])
    found = program("--retries", "0", *command, stdin=stdin(name), exit_code=4)
    assert "it is no bmt-server" in found.stderr
    assert "bmt-client list" not in found.stderr


@pytest.mark.found
@pytest.mark.parametrize("kind", ["html", "events", "other_api", "empty"])
def test_a_chat_with_no_model_is_an_error(program, urls, kind):
    found = program("--url", urls[kind], "chat", "math", "hello", exit_code=1)
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1


def test_a_wrong_address_names_its_fault(program, urls):
    def error(kind: str) -> str:
        return program("--url", urls[kind], "--retries", "0", "list", exit_code=None).stderr

    assert "https://sso.example/login" in error("redirect")
    assert "not trusted" in error("wrong_ca")
    assert "--ca-file" in error("wrong_ca")
    assert "does not answer in TLS" in error("no_tls")
