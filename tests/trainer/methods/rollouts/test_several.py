"""Rollouts over several servers and of several processes: the mask is that of one and one."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path

import pytest
from bmt_client import BmtClient, BmtClientError
from bmt_trainer.errors import ConfigError, RolloutError
from bmt_trainer.methods import grpo, sdft
from bmt_trainer.methods.config import SdftConfig

from tests.support.http.ports import free_port
from tests.support.training.display import Lines, quiet
from tests.support.training.ranks import RankedRun

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def both(served, made):
    """Two servers of one registry, and so of one key."""
    return served, made()


def urls(both):
    return ",".join(one.url for one in both)


def flags(config):
    """The settings of a command line that differ from the defaults."""
    values = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default and f.name not in ("output", "resume")
    }
    return {name: str(value) for name, value in values.items()}


def asked(servers):
    """Prompt, number and first seed of each request, in any order."""
    found = [one for server in servers for one in server.asked]
    return sorted((one["seed"], one["n"], one["prompt"]) for one in found)


def only_pushed(servers):
    """Make each server refuse a version that has not been pushed to it; returns what it refused."""
    missing = []

    def fault(server, client):
        def check(request):
            try:
                client.get(request["model"])
            except BmtClientError as error:
                missing.append((server.url, str(error)))

        return check

    for server in servers:
        client = BmtClient(server.url, server.key("admin"))
        server.faults = [fault(server, client)] * 1000
    return missing


def left(server):
    with BmtClient(server.url, server.key("admin")) as client:
        return [mask.name for mask in client.list()]


def test_two_servers_share_a_run_of_one_process(both, settings):
    alone = grpo.train(settings(server=both[0].url, output=Path(settings().output).with_name("a")))
    whole = asked(both)
    for server in both:
        server.asked.clear()
    missing = only_pushed(both)
    assert grpo.train(settings(server=urls(both)), quiet()).digest == alone.digest
    assert asked(both) == whole
    assert len(both[0].asked) == len(both[1].asked) > 0
    assert {one["model"].partition("@")[0] for one in both[0].asked}.isdisjoint(
        one["model"].partition("@")[0] for one in both[1].asked
    )
    assert not missing
    assert left(both[0]) == []


@pytest.mark.parametrize("step", [0, 2])
def test_the_server_that_is_gone_is_named(both, settings, step):
    """At the start, and in the middle; on the other one alone the run goes on to the same mask."""
    digest = grpo.train(settings(server=urls(both), output=settings().output.with_name("w"))).digest
    config, lines = settings(server=urls(both), server_wait=0, checkpoint_every=1), Lines()
    if step:
        both[1].faults = [lambda request: None] * 4 + [lambda request: end(both[1])]
    else:
        both[1].stop()
    with pytest.raises(RolloutError) as caught:
        grpo.train(config, lines)
    assert both[1].url in str(caught.value)
    assert both[0].url not in str(caught.value)
    assert "\n" not in str(caught.value)
    if step:
        assert "is written" in lines.text
    again = dataclasses.replace(config, server=both[0].url, resume=True)
    assert grpo.train(again, quiet()).digest == digest


def end(server):
    server._server.should_exit = server._server.force_exit = True
    time.sleep(1.0)


def test_servers_that_cannot_be_told_apart(settings):
    with pytest.raises(ConfigError, match="named twice"):
        settings(server="http://localhost:1, http://localhost:1/")
    with pytest.raises(ConfigError, match="no URL"):
        settings(server=" , ")
    assert settings(server=["http://a", "http://b"]).servers == ["http://a", "http://b"]


def of_sdft(config, **changes):
    """The settings of `sdft` that are those of a run by `grpo`."""
    names = {f.name for f in dataclasses.fields(SdftConfig)}
    same = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in names}
    rest = {"micro_batch": 2, "skip_tokens": 0, "alpha_start": 1e2, "learning_rate": 0.02}
    return SdftConfig(**{**same, **rest, **changes})


def test_sdft_answers_on_servers(both, settings):
    config = of_sdft(settings(server=both[0].url))
    alone = sdft.train(dataclasses.replace(config, output=config.output.with_name("a")), quiet())
    whole = asked(both)
    for server in both:
        server.asked.clear()
    assert (
        sdft.train(dataclasses.replace(config, server=urls(both)), quiet()).digest == alone.digest
    )
    assert asked(both) == whole
    assert left(both[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "sdft"])
def test_two_processes_over_two_servers_killed_and_resumed(both, settings, tmp_path, method):
    config = settings(server=urls(both), checkpoint_every=1, micro_batch=4)
    if method == "sdft":
        config = of_sdft(config, checkpoint_every=1)
    run = RankedRun(method, flags(config), tmp_path / "whole")
    missing = only_pushed(both)
    digest = run.finish()
    assert len(both[0].asked) == len(both[1].asked) > 0
    whole = asked(both)
    assert not missing
    killed = RankedRun(method, flags(config), tmp_path / "killed")
    killed.strike(signal.SIGKILL, 2)
    assert len(left(both[0])) == 2, "a name for each server"
    assert killed.finish("--resume") == digest
    assert left(both[0]) == []
    # One process on one server samples the same.
    for server in both:
        server.asked.clear()
    one = dataclasses.replace(config, server=both[0].url)
    assert RankedRun(method, flags(one), tmp_path / "one", ranks=1).finish()
    assert asked(both) == whole


@pytest.mark.slow
def test_a_server_that_fails_two_processes_ends_both_in_one_line(both, settings, tmp_path):
    config = settings(server=urls(both), server_wait=0, checkpoint_every=1, micro_batch=4)
    both[1].faults = [lambda request: None] * 4 + [lambda request: end(both[1])]
    run = RankedRun("grpo", flags(config), tmp_path / "run")
    processes = run.start()
    assert run.end(processes) == [1, 1]
    lines = [line for line in run.log.splitlines() if line.startswith("bmt-train")]
    assert both[1].url in lines[0]
    assert "is written" in run.log
    assert "Traceback" not in run.log
    down = dataclasses.replace(config, server=f"{both[0].url},http://127.0.0.1:{free_port()}")
    refused = RankedRun("grpo", flags(down), tmp_path / "down")
    assert refused.end(refused.start()) == [1, 1]
    assert "start it, or correct --server" in refused.log
    again = dataclasses.replace(config, server=both[0].url)
    resumed = RankedRun("grpo", flags(again), tmp_path / "run")
    assert resumed.finish("--resume")
