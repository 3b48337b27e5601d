"""Kernels of the masked delta, for tests that hold whichever of them runs."""

import pytest
from bmt_server.worker.kernels import masked_delta
from bmt_server.worker.kernels.native.build import BuildError, compiler


@pytest.fixture(params=["native", "portable"])
def each_kernel(request, monkeypatch):
    """The test runs once on each kernel; native is left out only where nothing can compile it."""
    if request.param == "native":
        try:
            compiler()
        except BuildError as error:
            pytest.skip(str(error))
    monkeypatch.setenv(masked_delta.ENV, request.param)
    return request.param
