"""A replica that imports from servers on loopback."""

from __future__ import annotations

import logging

import pytest
from bmt_server.sources.importer import Importer

from tests.support.http.sources import Authority, Names, source_server
from tests.support.replica import settings_of


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
async def server(authority):
    async with source_server(authority.server()) as one:
        yield one


@pytest.fixture
def imports_from(api, authority):
    """Let the replica import from places; returns the resolver."""

    def use(places, networks="127.0.0.0/8"):
        settings = settings_of("", "", import_from=places, import_networks=networks)
        names = Names()
        api.replace(importer=Importer(settings, names, authority.trust))
        return names

    return use


@pytest.fixture
def lines(caplog, monkeypatch):
    """Records of the audit log; vLLM's does not propagate to pytest's handler."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, "vllm.bmt_server.audit")
    return lambda: [r for r in caplog.records if r.name == "vllm.bmt_server.audit"]
