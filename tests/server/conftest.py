"""A real Valkey for each module of the server's tests; a test may kill it and start it again."""

from __future__ import annotations

import pytest

from tests.support.served import Valkey


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    store = Valkey(tmp_path_factory.mktemp("valkey"))
    store.start()
    yield store
    store.close()
