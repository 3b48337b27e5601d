"""A replica whose model routes run a stub of the engine under the server's hooks."""

from __future__ import annotations

import pytest

from tests.support.requests.metered import install_model_routes


@pytest.fixture
def engine(api):
    """The stub; `api` answers on all routes that name a model."""
    return install_model_routes(api)
