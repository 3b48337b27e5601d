"""A server without an engine, a run on it, and waits that are short."""

from __future__ import annotations

import pytest
import redis
from bmt_client import BmtClient
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.rollouts import connection, generation, of_run, outage, server

from tests.support.http.rollout_server import RolloutServer
from tests.support.served import Valkey

# Rewards must differ within a group, or the advantages are 0.
REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"


@pytest.fixture(scope="session")
def masks_registry(tmp_path_factory):
    store = Valkey(tmp_path_factory.mktemp("rollouts"))
    store.start()
    yield store
    store.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(outage, "_PAUSES_S", (0.1,))
    monkeypatch.setattr(connection, "_FIRST_S", 0.5)
    monkeypatch.setattr(generation, "_REFUSED_S", 0.5)
    monkeypatch.setattr(server, "_TIDIES_S", 1.0)
    monkeypatch.setattr(server, "_PAUSE_S", 0.1)


@pytest.fixture
def impatient(monkeypatch):
    """A server that is slower than this has hung, as a busy machine may make it."""
    monkeypatch.setattr(connection, "_PROBE_S", 1.0)
    monkeypatch.setattr(of_run, "_BESIDES_S", 0.5)


@pytest.fixture
def made(checkpoint, masks_registry, tmp_path):
    """Makes servers; the test's end ends them."""
    servers = []
    with redis.Redis(unix_socket_path=masks_registry.socket) as client:
        client.flushall()

    def make(**changes):
        changes = {"max_sparsity": 1.0, **changes}
        one = RolloutServer(
            checkpoint, tmp_path / f"server-{len(servers)}", masks_registry.url, **changes
        )
        servers.append(one)
        one.start()
        return one

    yield make
    for one in servers:
        one.held.clear()
        one.stop()


@pytest.fixture
def served(made, monkeypatch):
    """A server, and a key of the two scopes in BMT_API_KEY."""
    one = made()
    monkeypatch.setenv("BMT_API_KEY", one.key("infer", "upload"))
    return one


@pytest.fixture
def admin(served):
    """An administrator's client of `served`."""
    with BmtClient(served.url, served.key("admin")) as client:
        yield client


@pytest.fixture
def settings(checkpoint, tmp_path):
    """The settings of a run with some changed."""
    reward = tmp_path / "reward.py"
    reward.write_text(REWARD)

    def of(**changes):
        return GrpoConfig(
            **{
                "model": str(checkpoint),
                "dataset": "task:initials",
                "output": tmp_path / "m.bmt",
                "heldout": 4,
                "validation": 0,
                "steps": 4,
                "prompts_per_step": 4,
                "completions": 2,
                "micro_batch": 8,
                "learning_rate": 0.01,
                "calibration_prompts": 4,
                "max_new_tokens": 6,
                "checkpoint_every": 100,
                "reward": f"{reward}:odd",
                "device": "cpu",
                "server_wait": 2,
                **changes,
            }
        )

    return of
