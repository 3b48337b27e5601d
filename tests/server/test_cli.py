"""Options of `bmt-server`."""

from __future__ import annotations

import pytest
from bmt_server.cli import serve
from bmt_server.cli.main import app
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("flags", "sparsity"),
    [([], 0.05), (["--max-sparsity", "0.2"], 0.2), (["--max-density", "0.2"], 0.2)],
)
def test_the_largest_sparsity_has_a_former_name(monkeypatch, flags, sparsity):
    given = []
    monkeypatch.setattr(
        serve, "run", lambda *arguments: given.append(arguments[-1]["max_sparsity"])
    )
    done = CliRunner().invoke(app, ["serve", "m", *flags])
    assert (done.exit_code, given) == (0, [sparsity]), done.output
    assert "--max-density" not in CliRunner().invoke(app, ["serve", "--help"]).output


@pytest.mark.found
@pytest.mark.parametrize(
    ("flags", "variable", "seconds"),
    [([], "", 120), (["--keep-alive-seconds", "620"], "5", 620), ([], "75", 75)],
)
def test_connections_stay_open_longer_than_proxies_keep_them(monkeypatch, flags, variable, seconds):
    """By the flag, else by vLLM's own variable, which its processes read."""
    given = []
    monkeypatch.setattr(
        serve, "run", lambda *arguments: given.append(arguments[-1]["keep_alive_s"])
    )
    env = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": variable or None}
    done = CliRunner().invoke(app, ["serve", "m", *flags], env=env)
    assert (done.exit_code, given) == (0, [seconds]), done.output
