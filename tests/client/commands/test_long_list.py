"""A list of 100,000 masks, printed as it arrives, in the memory of a page."""

from __future__ import annotations

import json
import sys
import tracemalloc

import pytest
from bmt_client.cli import app

from tests.support.http.fake_server import KEY

COUNT = 100_000
ENTRY = (
    b'{"name": "m%06d", "digest": "' + b"ab" * 32 + b'", "rev": 1, "bytes": 9, "zeros": 80, '
    b'"sparsity": 0.1, "created": "2026-11-01T10:00:00Z", "base": {"model_id": "tiny"}, '
    b'"aliases": ["latest", "prod"], "model": "", "metadata": {"method": "sft"}}'
)


@pytest.fixture
def long(server, monkeypatch):
    """A server with 100,000 masks."""
    monkeypatch.setenv("BMT_URL", server.url)
    monkeypatch.setenv("BMT_API_KEY", KEY)
    answer = server.answer

    def quick(method, path, query, headers, body):
        if path != "/v1/masks":
            return answer(method, path, query, headers, body)
        first = int(query["after"][0][1:]) + 1 if "after" in query else 0
        last = min(first + int(query["limit"][0]), COUNT)
        more = b"true" if last < COUNT else b"false"
        entries = b", ".join(ENTRY % i for i in range(first, last))
        return 200, b'{"data": [%s], "has_more": %s}' % (entries, more)

    monkeypatch.setattr(server, "answer", quick)
    return server


@pytest.mark.found
@pytest.mark.parametrize(
    ("flags", "most"),
    [([], 20_000), (["--json"], 10_000), pytest.param([], COUNT, marks=pytest.mark.operate)],
)
def test_a_list_of_100_000_masks_takes_the_memory_of_a_page(
    long, tmp_path, monkeypatch, flags, most
):
    peaks = []
    for count in (1_000, most):
        out = tmp_path / f"list-{count}"
        with out.open("w") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            tracemalloc.start()
            try:
                with pytest.raises(SystemExit) as ended:
                    app(["list", "--limit", str(count), *flags])
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert ended.value.code == 0
    # The whole list is 30 MB of JSON.
    assert peaks[1] < peaks[0] + (1 << 20), peaks
    if flags:
        names = [mask["name"] for mask in json.loads(out.read_text())["data"]]
    else:
        names = [line.split("\t")[0] for line in out.read_text().splitlines()[1:]]
    assert names == [f"m{i:06}" for i in range(most)]
