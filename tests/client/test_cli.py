"""Commands of bmt-client against a fake server on a real socket."""

from __future__ import annotations

import json
import stat

import bmt_core
import pytest
from bmt_client.cli import app, hoist, masks, output
from typer.testing import CliRunner

from tests.support.http.fake_server import KEY, Fault
from tests.support.http.ports import free_port
from tests.support.masks import make_mask


@pytest.fixture
def run(server, monkeypatch):
    """Run a command line and check that its output has no key; returns the result."""
    monkeypatch.setenv("BMT_URL", server.url)
    monkeypatch.setenv("BMT_API_KEY", KEY)

    def call(*args, stdin=None, exit_code=0):
        found = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
        assert found.exit_code == exit_code, (found.output, found.exception)
        assert KEY not in found.output
        return found

    return call


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        bmt_core.save(make_mask(i, method="sft"), tmp_path / f"m{i}.bmt")
    return tmp_path


def data(result):
    document = json.loads(result.stdout)
    assert document["schema"] == 2
    return document["data"]


def test_upload_list_and_show(run, files):
    digest = make_mask(0).digest
    out = run("upload", "m0.bmt", "--name", "math", "--alias", "prod", "--alias", "eu")
    assert f"math@{digest[:12]}  rev 1  uploaded" in out.stdout
    assert out.stderr == ""
    assert "unchanged" in run("upload", "m0.bmt", "--name", "math").stdout
    listed = run("list").stdout.splitlines()
    assert listed[0].split() == [
        "NAME", "DIGEST", "REV", "ALIASES", "ZEROS", "SPARSITY", "SIZE", "AGE", "BASE"
    ]  # fmt: skip
    assert listed[-1].split()[:6] == ["math", digest[:12], "1", "eu,", "prod", "80"]
    shown = run("show", "math:prod").stdout
    assert digest in shown
    assert "method  sft" in shown
    assert run("versions", "math").stdout.count(digest[:12]) == 1


def test_json_has_the_same_data_and_nothing_else(run, files):
    uploaded = data(run("upload", "m0.bmt", "--json"))
    assert (uploaded["name"], uploaded["rev"], uploaded["outcome"]) == ("m0", 1, "created")
    shown = data(run("--json", "show", "m0"))
    assert shown == {k: v for k, v in uploaded.items() if k != "outcome"}
    assert [v["digest"] for v in data(run("versions", "m0", "--json"))] == [shown["digest"]]
    assert [(m["name"], m["versions"]) for m in data(run("list", "--json"))] == [("m0", 1)]
    assert [m["id"] for m in data(run("models", "--json"))] == ["base", "m0"]


def test_dry_run_checks_and_sends_nothing(run, files, server):
    found = data(run("upload", "m1.bmt", "--dry-run", "--json"))
    assert (found["name"], found["digest"], found["valid"]) == ("m1", make_mask(1).digest, True)
    assert "valid, not sent" in run("upload", "m1.bmt", "--dry-run").stdout
    (files / "bad.bmt").write_bytes(b"no mask")
    assert "error:" in run("upload", "bad.bmt", "--dry-run", exit_code=6).stderr
    assert server.requests == []


def test_upload_from_stdin(run, files):
    body = (files / "m0.bmt").read_bytes()
    assert "math@" in run("upload", "-", "--name", "math", stdin=body).stdout
    assert "give one" in run("upload", "-", stdin=body, exit_code=2).stderr


def test_versions_alias_rollback_delete(run, files):
    digests = [make_mask(i).digest for i in range(3)]
    for i in range(3):
        run("upload", f"m{i}.bmt", "--name", "math")
    run("alias", "math", "prod", digests[0][:12])
    assert data(run("show", "math:prod", "--json"))["digest"] == digests[0]
    out = run("rollback", "math").stdout
    assert f"math -> math@{digests[1][:12]}  rev 2" in out
    assert data(run("rollback", "math", "--to", digests[2], "--json"))["rev"] == 3
    run("alias", "math", "prod", "--delete")
    run("show", "math:prod", exit_code=4)
    run("alias", "math", "prod", exit_code=2)
    run("alias", "math", "prod", "latest", "--delete", exit_code=2)
    run("alias", "math", "eu", f"math@{digests[0]}")
    assert "--version" in run("delete", "math:eu", exit_code=2).stderr
    assert "alias NAME ALIAS --delete" in run("delete", "math:eu", "--version", exit_code=5).stderr
    run("delete", f"math@{digests[1][:12]}")
    assert [v["rev"] for v in data(run("versions", "math", "--json"))] == [3, 1]
    assert run("delete", "math").stdout == "math  deleted\n"
    run("show", "math", exit_code=4)


def test_download(run, files):
    body = (files / "m0.bmt").read_bytes()
    run("upload", "m0.bmt", "--name", "math")
    assert data(run("download", "math", "--json"))["path"] == "math.bmt"
    assert (files / "math.bmt").read_bytes() == body
    run("download", "math", "-o", files / "other.bmt")
    assert (files / "other.bmt").read_bytes() == body
    assert run("download", "math:latest", "-o", "-").stdout_bytes == body


def test_pin(run, files, server):
    run("upload", "m0.bmt")
    run("pin", "m0")
    assert server.versions["m0"][0]["pinned"]
    assert "pinned" in run("list").stdout
    run("unpin", "m0")
    assert not server.versions["m0"][0]["pinned"]


def test_an_empty_list_has_a_note(run):
    out = run("list")
    assert out.stdout == ""
    assert "bmt-client upload" in out.stderr
    assert data(run("list", "--json")) == []


def test_control_characters_do_not_reach_the_terminal(run, files, server):
    bmt_core.save(make_mask(5, note="\x1b[2J\x1b]0;owned\x07‮"), files / "m5.bmt")
    run("upload", "m5.bmt")
    for command in (("show", "m5"), ("inspect", "m5.bmt")):
        out = run(*command).stdout
        assert "\x1b" not in out
        assert "‮" not in out
        assert "\\x1b[2J" in out
    server.faults = [Fault(404, body=b'{"error": {"message": "\\u001b[31m\\nred"}}')]
    assert "\\x1b[31m red" in run("show", "m5", exit_code=4).stderr


EXIT_CODES = [
    (Fault(401), 3, "BMT_API_KEY"),
    (Fault(403), 3, "scope"),
    (Fault(404), 4, "bmt-client list"),
    (Fault(409), 5, "try again"),
    (Fault(412), 5, "try again"),
    (Fault(400), 6, None),
    (Fault(413), 6, None),
    (Fault(422), 6, None),
    (Fault(422, body=b'{"error": {"message": "m", "code": "base_mismatch"}}'), 6, "inspect"),
    (Fault(429), 7, "wait"),
    (Fault(503), 7, None),
    (Fault(507), 7, None),
    (Fault(drop=True), 7, "bmt-server serve"),
    (Fault(418), 1, None),
    (Fault(200, body=b"<html>"), 1, None),
]


@pytest.mark.parametrize("command", [("show", "math"), ("show", "math", "--json")])
@pytest.mark.parametrize(("fault", "code", "hint"), EXIT_CODES)
def test_exit_codes(run, server, command, fault, code, hint):
    server.faults = [fault]
    out = run("--retries", "0", *command, exit_code=code)
    lines = out.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) == (2 if hint else 1)
    if hint:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    if "--json" in command:
        document = json.loads(out.stdout)
        assert document["error"]["status"] == (None if fault.drop else fault.status)
        assert document["error"]["hint"] == (lines[1][6:] if hint else None)
    else:
        assert out.stdout == ""


def test_an_unreachable_server_is_unavailable(run):
    url = f"http://127.0.0.1:{free_port()}"
    out = run("--url", url, "--retries", "1", "list", exit_code=7)
    assert f"cannot connect to {url}" in out.stderr
    # Retries are reported while they wait.
    assert "retry 1 of 1" in out.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("upload",),
        ("upload", "absent.bmt"),
        ("upload", "m0.bmt", "--name", "No Name"),
        ("upload", "m0.bmt", "--alias", "a/b"),
        ("upload", "m0.bmt", "--if-match", "xyz"),
        ("upload", "m0.bmt", "--if-new", "--if-match", "0" * 64),
        ("show", "../x"),
        ("show", "math@12"),
        ("rollback", "math:prod"),
        ("inspect", "absent.bmt"),
        ("diff", "m0.bmt", "absent.bmt"),
        ("nonsense",),
        ("list", "--nonsense"),
        ("--url", "ftp://x", "list"),
        ("--url", "http://10.1.2.3", "list"),
        ("--timeout", "0", "list"),
        ("--retries", "-1", "list"),
        ("login", "--api-key", "bmt_x"),
        ("chat", "math", " "),
    ],
)
def test_usage_errors_exit_2_and_send_nothing(run, files, server, args):
    out = run(*args, exit_code=2)
    assert out.stderr
    assert out.stdout == ""
    assert server.requests == []


def test_global_options_may_appear_anywhere():
    assert hoist(["list", "--json"]) == ["--json", "list"]
    assert hoist(["show", "m", "--url", "http://x", "--timeout=3"]) == [
        "--url", "http://x", "--timeout=3", "show", "m"
    ]  # fmt: skip
    assert hoist(["chat", "m", "--", "--json"]) == ["chat", "m", "--", "--json"]
    assert hoist(["delete", "m", "--version"]) == ["delete", "m", "--version"]
    assert hoist(["list", "--url"]) == ["--url", "list"]


def test_version_and_help(run):
    assert run("--version").stdout.startswith("bmt-client 0.")
    helped = run("--help").stdout
    for name in ("upload", "list", "show", "versions", "alias", "rollback", "delete", "download",
                 "inspect", "diff", "chat", "pin", "unpin", "models", "login"):  # fmt: skip
        assert name in helped
        assert "Usage" in run(name, "--help").stdout


def test_login_keeps_the_key_for_its_server(run, server, monkeypatch, tmp_path):
    monkeypatch.delenv("BMT_API_KEY")
    run("list", exit_code=3)
    path = data(run("login", "--json", stdin=f"{KEY}\n"))["path"]
    assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o600
    run("list")
    monkeypatch.delenv("BMT_URL")
    run("list")
    run("login", "--forget")
    run("list", exit_code=3)
    # A wrong key is not stored.
    run("login", stdin="bmt_wrong\n", exit_code=3)
    assert "bmt_wrong" not in (tmp_path / path).read_text()
    run("login", stdin="\n", exit_code=2)


def test_interrupt_is_130(run, server, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("bmt_client.BmtClient.get", interrupt)
    run("show", "math", exit_code=130)


@pytest.mark.parametrize("stdin", [None, "hello"])
def test_chat(run, files, server, stdin):
    run("upload", "m0.bmt", "--name", "math")
    version = f"math@{make_mask(0).digest[:12]}"
    args = ("chat", "math", "--max-tokens", "9", "--temperature", "0", "--system", "be kind")
    if stdin is None:
        args = (*args, "hello")
    out = run(*args, stdin=stdin)
    assert out.stdout == "You said hello \n"
    assert out.stderr.startswith(f"{version} · 3 tokens")
    answer = data(run(*args, "--json", stdin=stdin))
    assert (answer["model"], answer["content"]) == (version, "You said hello ")
    assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 3)


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault(401), 3), (Fault(404), 4), (Fault(503), 7), (Fault(drop=True), 7), (Fault(422), 6)],
)
def test_errors_of_chat_have_the_same_exit_codes(run, server, fault, code):
    server.faults = [fault]
    out = run("--retries", "0", "chat", "math", "hello", exit_code=code)
    assert out.stderr.startswith("error: ")
    assert out.stdout == ""


def test_an_error_within_a_stream(run, server):
    body = b'data: {"error": {"message": "engine died", "code": 500}}\n\n'
    server.faults = [Fault(200, {"Content-Type": "text/event-stream"}, body)]
    out = run("--retries", "0", "chat", "base", "hello", exit_code=1)
    assert "engine died" in out.stderr


@pytest.fixture
def many(run, server, files):
    """Lets the fake server have a number of masks without their uploads."""
    run("upload", "m0.bmt")
    ((one,),) = server.versions.values()

    def names(count: int) -> list[str]:
        made = [f"m{i:05}" for i in range(count)]
        server.versions = {name: [{**one, "name": name}] for name in made}
        server.latest = dict.fromkeys(made, one["digest"])
        return made

    return names


@pytest.mark.found
def test_a_long_list_is_printed_page_by_page(run, many, monkeypatch):
    names = many(1200)
    shown, printed = [], output.print_table

    def table(console, columns, rows, *more, **options):
        shown.append(len(rows))
        printed(console, columns, rows, *more, **options)

    monkeypatch.setattr(masks, "print_table", table)
    lines = run("list").stdout.splitlines()
    assert shown == [500, 500, 200]
    assert [line.split()[0] for line in lines] == ["NAME", *names]
    listed = data(run("list", "--json"))
    assert [mask["name"] for mask in listed] == names


def test_an_error_on_a_later_page_is_in_the_one_document(run, server, many):
    many(600)
    answers, page = [], server._page

    def failing(query):
        answers.append(query)
        return page(query) if len(answers) == 1 else {"object": "list", "data": "none"}

    server._page = failing
    document = json.loads(run("list", "--json", exit_code=1).stdout)
    assert len(document["data"]) == 500
    assert "no `data` list" in document["error"]["message"]


@pytest.mark.found
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("acme/support-bot", "acme.support-bot"),
        ("Llama-3-SQL", "llama-3-sql"),
        ("a__b", "a-b"),
        ("Acme/Support__Bot", "acme.support-bot"),
    ],
)
def test_a_name_of_the_hub_is_imported_and_told(run, files, name, own):
    out = run("upload", "m0.bmt", "--name", name)
    assert f"{own}@" in out.stdout
    (line,) = out.stderr.splitlines()
    assert line.startswith(f"{name} is uploaded as {own}")
    assert data(run("upload", "m0.bmt", "--name", name, "--json"))["name"] == own
    assert run("show", own).stderr == ""
    assert f"'{own}'" in " ".join(run("show", name, exit_code=2).stderr.replace("│", "").split())
    assert own == bmt_core.suggest_name(name)


@pytest.mark.parametrize("name", ["No Name", "math:prod", "//", "", "é"])
def test_other_names_are_refused(run, files, name):
    assert run("upload", "m0.bmt", "--name", name, exit_code=2).stdout == ""
