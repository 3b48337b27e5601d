"""`--json`: exactly one document on stdout, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import bmt_core
import pytest
from bmt_client import BmtClient
from bmt_client.cli import app

from tests.support.http.commands import COMMANDS
from tests.support.http.fake_server import KEY
from tests.support.masks import make_mask


def document(found):
    value = json.loads(found.stdout)
    assert value["schema"] == 2
    return value


USAGE = [
    (),
    ("nonsense",),
    ("list", "--nonsense"),
    ("list", "--sort", "color"),
    ("list", "--limit", "0"),
    ("--retries", "-1", "list"),
    ("--timeout", "soon", "list"),
    ("--url", "ftp://x", "list"),
    ("--url", "absent-profile", "list"),
    ("--ca-file", "absent.pem", "--url", "https://h.test", "list"),
    ("show",),
    ("show", "../x"),
    ("show", "math", "prose"),
    ("upload",),
    ("upload", "absent.bmt"),
    ("upload", "a.bmt", "b.bmt", "--name", "math"),
    ("upload", "a.bmt", "folder/a.bmt"),
    ("upload", "a.bmt", "-"),
    ("copy", "math"),
    ("delete", "math:prod"),
    ("prune", "math", "--keep-last", "none"),
    ("alias", "math"),
    ("chat", "math", " "),
    ("login", "--profile", "No Name"),
    *((name, "--nonsense") for name in sorted(set(COMMANDS) - {"unalias"})),
    *((name, *["a"] * 9, "--nonsense=1") for name in ("list", "versions", "models", "whoami")),
]


@pytest.mark.found
@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_a_usage_error_is_a_document(program, words):
    found = program("--json", *words, stdin=f"{KEY}\n", exit_code=2)
    error = document(found)["error"]
    assert (error["type"], error["code"] != "internal") == ("UsageError", True)
    assert error["message"]
    lines = found.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    # The same without a document.
    plain = program(*words, stdin=f"{KEY}\n", exit_code=2)
    assert plain.stdout == ""
    assert plain.stderr


def test_a_file_on_stdout_leaves_no_place_for_a_document(program):
    error = document(program("--json", "download", "math", "-o", "-", exit_code=2))["error"]
    assert "stdout" in error["message"]


@pytest.mark.parametrize("words", [("--help",), ("list", "-h"), ("--version",)])
def test_a_text_is_a_document(program, words):
    assert document(program("--json", *words))["data"]["text"] == program(*words).stdout


def test_a_fault_of_the_program_is_a_document_too(monkeypatch, server, capsys):
    def fails(*args):
        raise RuntimeError("a fault")

    monkeypatch.setattr("bmt_client.BmtClient.get", fails)
    with pytest.raises(RuntimeError):
        app(["--url", server.url, "--json", "show", "math"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["message"]) == ("internal", "RuntimeError: a fault")


@pytest.mark.found
@pytest.mark.parametrize("words", [("show", "math"), ("chat", "math", "hello"), ("list",)])
def test_an_interrupt_is_a_document(words, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment = {
            **os.environ,
            "BMT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "BMT_CONFIG": str(tmp_path / "client.json"),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "bmt_client", "--json", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        connection, _ = silent.accept()
        connection.recv(1)  # the request is on its way
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        connection.close()
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert b"Traceback" not in err


@pytest.mark.parametrize("words", ["models", "models --json"])
def test_a_reader_that_has_enough_and_a_full_disk(server, words):
    environment = {**os.environ, "BMT_URL": server.url, "BMT_API_KEY": KEY}
    command = f"{sys.executable} -m bmt_client {words}"

    def shell(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)

    assert shell(f"{command} | true").stderr == ""
    full = shell(f"{command} > /dev/full")
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1


def test_an_interrupt_within_a_list_ends_its_document(program, server, monkeypatch):
    version = {"name": "math", "digest": "ab" * 32}
    answers = [{"data": [version] * 500, "has_more": True, "next": "x"}]

    def page(query):
        return answers.pop()

    monkeypatch.setattr(server, "_page", page)
    send = BmtClient._send

    def interrupted(self, request):
        if not answers:
            raise KeyboardInterrupt
        return send(self, request)

    monkeypatch.setattr(BmtClient, "_send", interrupted)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    found = program("--url", server.url, "--json", "list", exit_code=130)
    value = document(found)
    assert len(value["data"]) == 500
    assert value["error"]["code"] == "interrupted"


@pytest.mark.found
def test_several_items_are_one_list(program, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BMT_URL", server.url)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    for i in range(3):
        bmt_core.save(make_mask(i), tmp_path / f"m{i}.bmt")
    (tmp_path / "bad.bmt").write_bytes(b"no mask")
    sent = document(program("--json", "upload", "m0.bmt", "m1.bmt"))
    assert [(one["file"], one["name"]) for one in sent["data"]] == [
        ("m0.bmt", "m0"), ("m1.bmt", "m1"),
    ]  # fmt: skip
    assert "error" not in sent
    # One fault does not keep the others.
    found = program("--json", "upload", "m0.bmt", "bad.bmt", "m2.bmt", exit_code=6)
    sent = document(found)
    assert [one.get("outcome", "error") for one in sent["data"]] == [
        "unchanged", "error", "created",
    ]  # fmt: skip
    assert sent["data"][1]["error"]["code"] == sent["error"]["code"]
    assert found.stderr.startswith("error: bad.bmt: ")
    gone = document(program("--json", "delete", "m0", "absent", "m1", exit_code=4))
    assert [one.get("deleted") for one in gone["data"]] == ["m0", None, "m1"]
    assert sorted(server.latest) == ["m2"]
    # One item keeps the form that it has always had.
    assert document(program("--json", "delete", "m2"))["data"] == {"deleted": "m2"}
