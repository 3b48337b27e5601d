"""`login`, `logout`, `whoami`, `status` and the config file, sound or damaged."""

from __future__ import annotations

import json
import stat

import pytest
from bmt_client._config import config_path

from tests.support.http.fake_server import KEY, Fault
from tests.support.http.ports import free_port

# A pipe would block whoever reads it, and a folder cannot be read.
DAMAGES = {
    "empty": b"",
    "cut": b'{"url": "http://x", "keys": {"http',
    "list": b"[]",
    "number": b"5",
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "url": b'{"url": 5, "keys": {}}',
    "keys": b'{"url": "http://127.0.0.1:1", "keys": [1]}',
    "key": b'{"keys": {"http://x.test": 5, "https://y.test": "bmt_y"}}',
    "profiles": b'{"profiles": {"prod": {}}}',
    "folder": None,
}


@pytest.fixture
def run(program, server, monkeypatch):
    monkeypatch.setenv("BMT_URL", server.url)
    return program


@pytest.fixture(params=DAMAGES)
def damaged(request):
    path = config_path()
    path.parent.mkdir(parents=True)
    if DAMAGES[request.param] is None:
        path.mkdir()
    else:
        path.write_bytes(DAMAGES[request.param])
        path.chmod(0o600)
    return path


@pytest.mark.found
def test_a_damaged_file_is_mended_by_login(run, server, damaged):
    before = content_of(damaged)
    for words in (
        ("list",),
        ("status",),
        ("logout",),
        ("chat", "m", "hi"),
        ("--json", "show", "m"),
    ):
        found = run(*words, exit_code=2)
        assert str(damaged) in found.stderr
        assert len(found.stderr.splitlines()) == 1
    found = run("login", stdin=f"{KEY}\n")
    assert "damaged" in found.stderr
    assert stat.S_IMODE(damaged.stat().st_mode) == 0o600
    backup = damaged.with_name("client.json.damaged")
    assert content_of(backup) == before
    run("list")
    assert json.loads(damaged.read_text())["keys"][server.url] == KEY


def content_of(path):
    return None if path.is_dir() else path.read_bytes()


def test_sound_fields_of_a_damaged_file_stay(run, server):
    path = config_path()
    path.parent.mkdir(parents=True)
    content = {
        "url": 5,
        "keys": {"https://y.test": "bmt_y", "https://z.test": 1},
        "newer": {"a": 1},
    }
    for _ in range(2):
        path.write_text(json.dumps(content))
        path.chmod(0o600)
        run("login", stdin=f"{KEY}\n")
        found = json.loads(path.read_text())
        assert found["keys"] == {"https://y.test": "bmt_y", server.url: KEY}
        assert (found["url"], found["newer"]) == (server.url, {"a": 1})
    names = {one.name for one in path.parent.iterdir()}
    assert names == {"client.json", "client.json.damaged", "client.json.damaged.2"}


def test_login_mends_the_mode(run, server):
    run("login", stdin=f"{KEY}\n")
    config_path().chmod(0o644)
    assert "chmod 600" in run("list", exit_code=2).stderr
    run("login", stdin=f"{KEY}\n")
    run("list")
    assert [one.name for one in config_path().parent.iterdir()] == ["client.json"]


def test_a_config_file_behind_a_link_stays_there(run, server, tmp_path):
    target = tmp_path / "dotfiles.json"
    config_path().parent.mkdir(parents=True)
    config_path().symlink_to(target)
    run("login", stdin=f"{KEY}\n")
    assert config_path().is_symlink()
    assert KEY in target.read_text()


@pytest.mark.found
@pytest.mark.parametrize(
    ("fault", "code"), [(Fault(503), 7), (Fault(drop=True), 7), (Fault(401), 3)]
)
def test_a_key_is_stored_only_after_the_server_took_it(run, server, fault, code):
    server.faults = [fault] * 2
    run("--retries", "0", "login", stdin=f"{KEY}\n", exit_code=code)
    assert not config_path().exists()
    run("login", "--no-check", stdin=f"{KEY}\n")
    assert KEY in config_path().read_text()


def test_a_key_for_a_server_of_an_earlier_build(run, server):
    server.shows_key = False
    run("login", stdin="bmt_wrong\n", exit_code=3)
    run("login", stdin=f"{KEY}\n")
    run("list")
    assert "ready" in run("status").stdout


@pytest.mark.found
def test_logout(run, server):
    run("login", stdin=f"{KEY}\n")
    run("--url", "http://127.0.0.1:1", "login", "--no-check", stdin="bmt_b\n")
    found = json.loads(run("logout", "--json").stdout)["data"]
    assert found["removed"] == [server.url]
    run("list", exit_code=3)
    assert "there was none" in run("logout").stdout
    assert json.loads(run("logout", "--all", "--json").stdout)["data"]["removed"] == [
        "http://127.0.0.1:1"
    ]
    assert json.loads(config_path().read_text())["keys"] == {}


@pytest.mark.found
def test_whoami_and_status(run, server, monkeypatch):
    monkeypatch.setenv("BMT_API_KEY", KEY)
    me = json.loads(run("whoami", "--json").stdout)["data"]
    assert (me["key_id"], me["scopes"], me["url"]) == (
        "k1",
        ["admin", "infer", "upload"],
        server.url,
    )
    assert "k1" in run("whoami").stdout
    status = json.loads(run("status", "--json").stdout)["data"]
    assert (status["ready"], status["url_from"], status["key_from"]) == (
        True, "BMT_URL", "BMT_API_KEY",
    )  # fmt: skip
    assert (status["trust"], status["proxy"], status["key"]["key_id"]) == ("system", None, "k1")
    # Not ready: the answer is printed, and the exit code says it.
    server.faults = [None, Fault(503, body=b'{"status": "not ready"}')]
    assert json.loads(run("status", "--json", exit_code=7).stdout)["data"]["ready"] is False
    url = f"http://127.0.0.1:{free_port()}"
    assert "cannot connect" in run("--url", url, "--retries", "0", "status", exit_code=7).stderr


def test_a_profile_that_is_not_there_lists_the_others(run, server):
    run("login", "--profile", "prod", stdin=f"{KEY}\n")
    assert "there are: prod" in run("--url", "stage", "list", exit_code=2).stderr
    run("--url", "prod", "list")
