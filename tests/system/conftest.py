"""Long scenarios of running servers: only with `-m operate`, as `make test-operate` does.

Each file is one scenario on real parts. It prints its figures and keeps them (`figures.py`). Sizes
are the full ones times $BMT_OPERATE_SCALE.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bmt_server.registry.api_keys import SCOPES, make_key

from tests.server.conftest import valkey  # noqa: F401


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the collection of scenarios unless they are asked for."""
    asked = re.search(r"(?<!not )\b(operate|found)\b", config.option.markexpr)
    return None if asked else True


@pytest.fixture(scope="module")
def admin_key() -> str:
    """A key that every server of a scenario is given, as an operator would."""
    return make_key(SCOPES)
