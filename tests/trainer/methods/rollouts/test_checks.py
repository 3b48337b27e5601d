"""Troubles of a server in one line before the base answers a prompt."""

from __future__ import annotations

import socket
import time

import pytest
from bmt_client import BmtClient, ProtocolError
from bmt_server.registry.api_keys import make_key
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.methods.grpo import train
from bmt_trainer.methods.rollouts.checks import Requirements, stated_by
from bmt_trainer.methods.rollouts.connection import Connection

from tests.support.http.fake_server import FakeServer, Fault, Problem, serving
from tests.support.http.ports import free_port
from tests.support.training.display import Lines


def refused(config, kind=RolloutError):
    """The line that a run ends with, before weights are loaded."""
    lines, started = Lines(), time.monotonic()
    with pytest.raises(kind) as caught:
        train(config, lines)
    assert time.monotonic() - started < 30
    assert "masking" not in lines.text
    assert "base " not in lines.text.partition("held out")[2]
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.found
@pytest.mark.parametrize(
    ("scopes", "fix"),
    [
        (None, "BMT_API_KEY"),
        ((), "BMT_API_KEY"),
        (("infer",), "--scope infer --scope upload"),
        (("upload",), "--scope infer --scope upload"),
    ],
    ids=["no key", "wrong key", "infer", "upload"],
)
def test_a_key_that_cannot_serve(served, settings, monkeypatch, scopes, fix):
    if scopes is None:
        monkeypatch.delenv("BMT_API_KEY")
    else:
        monkeypatch.setenv("BMT_API_KEY", served.key(*scopes) if scopes else make_key(("infer",)))
    line = refused(settings(server=served.url))
    assert fix in line
    assert served.url in line
    assert not served.asked


@pytest.mark.found
def test_another_base(made, settings, monkeypatch):
    other = made(fingerprint="1f" * 32)
    monkeypatch.setenv("BMT_API_KEY", other.key("infer", "upload"))
    line = refused(settings(server=other.url))
    assert "1f1f1f1f1f1f" in line
    assert "fingerprint" in line


def test_a_quantized_copy_of_the_base(made, settings, monkeypatch):
    """Its fingerprint for masks is the base's, and its answers are not the base's."""
    copy = made(precision="int8", quantized=True, served_fingerprint="2f" * 32)
    monkeypatch.setenv("BMT_API_KEY", copy.key("infer", "upload"))
    line = refused(settings(server=copy.url))
    assert "quantized copy of the base (int8)" in line
    assert not copy.asked


@pytest.mark.found
@pytest.mark.parametrize(("tokens", "fix"), [(300, "--max-model-len"), (500, "max_new_tokens")])
def test_a_context_too_short(made, settings, monkeypatch, tokens, fix):
    short = made(context=256)
    monkeypatch.setenv("BMT_API_KEY", short.key("infer", "upload"))
    line = refused(settings(server=short.url, max_new_tokens=tokens))
    assert f"+ {tokens}" in line
    assert "256 tokens" in line
    assert fix in line


def test_a_context_that_just_fits(made, settings, monkeypatch):
    """The bound is exact: the same run one token longer is refused."""
    fits = made(context=256)
    monkeypatch.setenv("BMT_API_KEY", fits.key("infer", "upload"))
    line = refused(settings(server=fits.url, max_new_tokens=300))
    room = int(line.partition("lower max_new_tokens to ")[2].split()[0])
    assert f"+ {room + 1}" in refused(settings(server=fits.url, max_new_tokens=room + 1))
    assert train(settings(server=fits.url, max_new_tokens=room, steps=1, heldout=0), Lines()).zeros
    assert {one["max_tokens"] for one in fits.asked} == {room}


@pytest.mark.found
def test_more_completions_than_a_request_may_have(served, settings):
    line = refused(settings(server=served.url, completions=200))
    assert "200" in line
    assert "at most 64" in line


@pytest.mark.found
def test_a_first_mask_over_the_bound(made, settings, monkeypatch):
    strict = made(max_sparsity=0.001)
    monkeypatch.setenv("BMT_API_KEY", strict.key("infer", "upload"))
    line = refused(settings(server=strict.url))
    assert "0.100%" in line
    assert "--max-sparsity 0.004" in line
    # Without the tail of Eq. 9 the start is below the bound.
    assert train(settings(server=strict.url, init="no-tail", steps=1), Lines()).zeros


@pytest.mark.found
def test_a_server_that_is_down(settings):
    url = f"http://127.0.0.1:{free_port()}"
    line = refused(settings(server=url))
    assert url in line
    assert "--server" in line


@pytest.mark.found
@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://h:70000"])
def test_a_url_that_is_none(settings, url):
    assert "server: the URL" in refused(settings(server=url), ConfigError)


def test_a_key_that_would_leave_the_machine_unencrypted(settings, monkeypatch):
    monkeypatch.setenv("BMT_API_KEY", make_key(("infer",)))
    line = refused(settings(server="http://masks.example.org"), ConfigError)
    assert "https://" in line
    assert "allow" not in line


@pytest.mark.found
def test_a_server_that_hangs(settings, impatient):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "did not answer within 1 s" in refused(settings(server=url))


def test_a_program_that_is_no_bmt_server(settings, monkeypatch):
    fake = FakeServer()
    fake.faults = [Fault(status=200, body=b"<html>hello</html>")] * 3
    with serving(fake):
        monkeypatch.setenv("BMT_API_KEY", fake.key)
        assert "not a JSON object" in refused(settings(server=fake.url))


def test_layers_that_servers_do_not_mask(served, settings):
    line = refused(settings(server=served.url, targets=r"\.mlp\.up_proj$"), ConfigError)
    assert "up_proj" in line
    assert "gate projections" in line


def test_one_that_is_starting_is_waited_for(settings, monkeypatch):
    """503 until it is ready, as it says itself, or the proxy in front of it."""
    fake, lines = FakeServer(), Lines()
    fake.faults = [Fault(status=503), Fault(status=502, body=b"<html>Bad Gateway</html>")]
    needs = Requirements("00" * 32, 10, 10, 2, 0.001)
    with serving(fake):
        monkeypatch.setenv("BMT_API_KEY", fake.key)
        server = Connection(fake.url, needs, wait_s=30, limit_s=5, say=lines.say)
        server.open()
    assert "try later); waiting for it up to 0.5 minutes" in lines.text
    assert "is back after" in lines.text


def test_servers_of_an_earlier_build_are_checked_as_far_as_they_say(monkeypatch):
    said = []
    with serving(FakeServer()) as old, BmtClient(old.url, old.key, max_retries=0) as client:
        found = stated_by(client, said.append)
        assert (found.scopes, found.max_n, found.max_sparsity) == (frozenset(), None, None)
    assert len(said) == 1
    assert "earlier build" in said[0]
    Requirements("00" * 32, 10, 10, 200, 0.9).check("http://x", found)


class PlainServer(FakeServer):
    """Another server of OpenAI's form, without masks."""

    def answer(self, method, path, *rest):
        if path.startswith("/v1/masks"):
            raise Problem(404, "not_found", "Not Found")
        return super().answer(method, path, *rest)


def test_servers_without_masks_are_named():
    with (
        serving(PlainServer()) as plain,
        BmtClient(plain.url, plain.key, max_retries=0) as client,
        pytest.raises(ProtocolError, match="no bmt-server"),
    ):
        stated_by(client, print)
