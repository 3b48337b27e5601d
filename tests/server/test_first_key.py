"""First contact of `bmt-server serve` with its registry, which may be away or unfit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bmt_server.cli.first_key import check_url, contact_registry
from bmt_server.registry.api_keys import make_key, well_formed
from bmt_server.settings import SettingsError

from tests.support.scenarios.nodes import Node, node
from tests.support.served import until

pytestmark = pytest.mark.found


def test_a_registry_that_is_away_is_waited_for(tmp_path, capsys):
    one, key = Node(tmp_path / "r"), tmp_path / "key"
    contact_registry(one.url, key, no_auth=False)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "does not answer" in said[0]
    assert one.host in said[0]
    one.start()
    try:
        until(lambda: key.exists() and bool(key.read_text()), 10)
        assert well_formed(key.read_text().strip())
        assert one.client().hlen("{bmt}:keys") == 1
    finally:
        one.kill()


def test_the_first_key_is_in_its_file_alone(tmp_path, capfd):
    """The file's former mode does not let others read it, and no log has the key."""
    key = tmp_path / "key"
    key.write_text("of before\n")
    key.chmod(0o644)
    with node(tmp_path / "r") as one:
        contact_registry(one.url, key, no_auth=False)
    made = key.read_text().strip()
    assert well_formed(made)
    assert key.stat().st_mode & 0o777 == 0o600
    out, err = capfd.readouterr()
    assert made not in out + err
    assert str(key) in err
    assert not list(tmp_path.glob(".key-*"))


def test_a_first_key_that_cannot_be_written_is_printed(tmp_path, capfd):
    with node(tmp_path / "r") as one:
        contact_registry(one.url, tmp_path / "gone" / "key", no_auth=False)
    out, err = capfd.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("API key"))
    assert well_formed(line.split()[-1])
    assert "No such file" in err


def test_a_key_file_that_a_later_start_does_not_write_is_named(tmp_path, capfd):
    """Else a reader waits for a file that never comes; a file that is there is left as it is."""
    first, second = tmp_path / "first", tmp_path / "second"
    with node(tmp_path / "r") as one:
        contact_registry(one.url, first, no_auth=False)
        made = first.read_text()
        capfd.readouterr()
        contact_registry(one.url, first, no_auth=False)
        assert capfd.readouterr() == ("", "")
        contact_registry(one.url, second, no_auth=False)
    out, err = capfd.readouterr()
    assert not out
    assert f"--key-file {second} is not written" in err
    assert "bmt-server keys create --scope admin" in err
    assert first.read_text() == made
    assert not second.exists()


def test_a_key_that_the_operator_chose_is_stored_when_the_registry_is_there(tmp_path, monkeypatch):
    one = Node(tmp_path / "r")
    monkeypatch.setenv("BMT_ADMIN_KEY", make_key(("admin",)))
    contact_registry(one.url, None, no_auth=False)
    one.start()
    try:
        until(lambda: one.client().hlen("{bmt}:keys") == 1, 10)
    finally:
        one.kill()


def test_a_key_that_was_revoked_is_named_and_stays_so(tmp_path, monkeypatch, capsys):
    """Each start of a server has the variable still."""
    key = make_key(("admin",))

    def start() -> str:
        monkeypatch.setenv("BMT_ADMIN_KEY", key)
        contact_registry(one.url, None, no_auth=False)
        return capsys.readouterr().err

    with node(tmp_path / "r") as one:
        assert start() == ""
        (field,) = one.client().hkeys("{bmt}:keys")
        (record,) = map(json.loads, one.client().hvals("{bmt}:keys"))
        command = ("keys", "revoke", record["key_id"], "--registry", one.url)
        subprocess.run([sys.executable, "-m", "bmt_server", *command], check=True, timeout=60)
        said = start()
        assert "BMT_ADMIN_KEY was revoked" in said
        assert key not in said
        assert json.loads(one.client().hget("{bmt}:keys", field))["scopes"] == []


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [("requirepass", "x", "user or password"), ("maxmemory-policy", "allkeys-lru", "allkeys-lru")],
)
def test_a_registry_that_cannot_be_used_ends_the_start(tmp_path, setting, value, message):
    with node(tmp_path / "r") as one:
        one.client().config_set(setting, value)
        with pytest.raises(SettingsError, match=message):
            contact_registry(one.url, None, no_auth=True)


def test_a_key_that_is_none_ends_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("BMT_ADMIN_KEY", "secret")
    with node(tmp_path / "r") as one, pytest.raises(SettingsError, match="BMT_ADMIN_KEY"):
        contact_registry(one.url, None, no_auth=False)


def test_a_url_of_no_registry_is_refused():
    check_url("redis+sentinel://a,b/masks")
    with pytest.raises(SettingsError, match="--registry"):
        check_url("http://h")


@pytest.mark.parametrize(
    "command", [("keys", "list"), ("gc",), ("fsck",)], ids=lambda command: command[0]
)
def test_a_command_says_in_a_line_that_the_registry_is_away(tmp_path, command):
    one = Node(tmp_path / "r")
    done = subprocess.run(
        [sys.executable, "-m", "bmt_server", *command, "--registry", one.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "does not answer" in done.stderr


def test_keys_that_would_never_end_are_not_made(tmp_path):
    """By the command line, as an operator makes them."""
    with node(tmp_path / "r") as one:
        for flags in (("--expires", "tomorrow"), ("--tenant", "acme/sub")):
            command = ("keys", "create", "--scope", "infer", "--registry", one.url, *flags)
            done = subprocess.run(
                [sys.executable, "-m", "bmt_server", *command],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (done.returncode, done.stdout) == (1, "")
            assert flags[1] in done.stderr
        assert one.client().hlen("{bmt}:keys") == 0
