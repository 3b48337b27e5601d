"""Fixture that runs a test on each CPU kernel of the masked delta."""

import pytest
from bmt_server.worker.kernels.native.build import BuildError, compiler
from bmt_server.worker.kernels.selection import KERNEL_ENV


@pytest.fixture(params=["native", "portable"])
def each_kernel(request, monkeypatch):
    """Run the test once per kernel; skip native only if no compiler is installed."""
    if request.param == "native":
        try:
            compiler()
        except BuildError as error:
            pytest.skip(str(error))
    monkeypatch.setenv(KERNEL_ENV, request.param)
    return request.param
