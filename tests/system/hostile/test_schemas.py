"""Schemathesis on our routes' OpenAPI: whatever is sent, no answer is a 5xx, and nothing breaks."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import warnings
from typing import Any
from unittest import SkipTest

import bmt_core
import pytest
from bmt_server.api.routes.router import build_router
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.support.damaged_files import files
from tests.support.replica import make_mask
from tests.support.scenarios.figures import Figures, scaled
from tests.support.scenarios.publisher import Publisher
from tests.support.scenarios.registry import looked_at, new_key

pytestmark = [pytest.mark.operate, pytest.mark.timeout(7200)]

CASES = scaled(5000, 100)
NAME = "m"  # as fsck is asked for it
MASKS = [make_mask(i) for i in range(4)]
BODIES = st.one_of(
    st.sampled_from([bmt_core.encode(m) for m in MASKS]), files(), st.binary(max_size=200)
)
TARGETS = st.one_of(
    st.sampled_from([b'{"rev": 1}', b'{"digest": "%s"}' % MASKS[0].digest.encode(), b"{}", b"[1]"]),
    st.builds(
        lambda main, part, rev, percent: json.dumps(
            {"rev": main, part: {"rev": rev, "percent": percent}}
        ).encode(),
        st.integers(1, 3),
        st.sampled_from(["canary", "shadow"]),
        st.integers(1, 3),
        st.one_of(st.sampled_from([0, 5, 99.99, 100]), st.floats(), st.integers()),
    ),
    st.binary(max_size=60),
)
# Of a canary that is promoted or rolled back.
PROMOTIONS = st.one_of(
    st.sampled_from([b"", b"{}", b"[]", b'{"canary": "%s"}' % MASKS[1].digest.encode()]),
    st.binary(max_size=60),
)
# Of keys that are made or rotated; none that ends the test's own.
NEW_KEYS = st.one_of(
    st.sampled_from(
        [b'{"scopes": ["infer"], "expires": "1d"}', b'{"overlap": "1m"}', b"{}", b"[]"]
    ),
    st.binary(max_size=60),
)
# Of imports and of vLLM's routes of adapters; the server's list of places is empty.
SOURCES = st.one_of(
    st.sampled_from(
        [
            b'{"source": "%s@%s"}' % (NAME.encode(), MASKS[0].digest.encode()),
            b'{"source": "hf://acme/masks/m.bmt"}',
            b'{"source": "https://169.254.169.254/x"}',
            b'{"lora_name": "n", "lora_path": "%s:latest"}' % NAME.encode(),
            b'{"lora_name": "n", "lora_path": "/etc/passwd", "load_inplace": true}',
            b'{"lora_name": "n"}',
            b"{}",
            b"[1]",
        ]
    ),
    st.binary(max_size=60),
)
# What a request that means something would have there.
FAMILIAR = {
    "name": st.sampled_from([NAME, "n", f"{NAME}:prod", f"{NAME}@{MASKS[0].digest[:12]}"]),
    "model": st.sampled_from([NAME, "tiny", f"{NAME}:prod", f"{NAME}@{MASKS[1].digest[:12]}"]),
    "alias": st.sampled_from(["prod", "latest", "canary"]),
    "digest": st.sampled_from([m.digest for m in MASKS] + [MASKS[0].digest[:12]]),
    "parent": st.sampled_from([m.digest for m in MASKS]),
}


def operations() -> list[Any]:
    import schemathesis

    app = FastAPI()
    app.include_router(build_router())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = app.openapi()
    schema = schemathesis.openapi.from_dict(raw)
    return [result.ok() for result in schema.get_all_operations()]


def test_schemas(valkey, tmp_path):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    figures = Figures("schemas")
    key = asyncio.run(new_key(valkey.url))
    server = Publisher(valkey.url, tmp_path / "cache")
    statuses: collections.Counter = collections.Counter()
    failures: list[str] = []
    found = operations()
    positive = schemathesis.GenerationMode.POSITIVE
    negative = schemathesis.GenerationMode.NEGATIVE

    def send(case: Any, data: st.DataObject) -> None:
        for part in (case.path_parameters, case.query):
            for field in set(part or ()) & set(FAMILIAR):
                if data.draw(st.booleans()):
                    part[field] = data.draw(FAMILIAR[field])
        more: dict[str, Any] = {}
        headers = {"Authorization": f"Bearer {key}"}
        if case.method.upper() == "POST" and "/v1/keys" in case.path:
            more["data"] = data.draw(NEW_KEYS)
        elif case.method.upper() == "POST" and "/aliases/" in case.path:
            more["data"] = data.draw(PROMOTIONS)
        elif case.path.endswith(("/import", "_lora_adapter")):
            more["data"] = data.draw(SOURCES)
        elif case.method.upper() in ("PUT", "PATCH"):
            more["data"] = data.draw(TARGETS if "aliases" in case.path else BODIES)
            headers["Content-Type"] = "application/octet-stream"
            if data.draw(st.booleans()):
                headers["If-Match"] = data.draw(
                    st.sampled_from([f'"{MASKS[0].digest}"', '"x"', "*", ""])
                )
        answer = case.call(base_url=server.url, headers=headers, timeout=20, **more)
        statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            failures.append(f"{case.method} {case.formatted_path} {answer.status_code}")

    def run(operation: Any, mode: Any, examples: int) -> None:
        """At most so many cases: hypothesis ends where it has no other ones."""

        @settings(
            max_examples=max(1, examples),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(operation.as_strategy(generation_mode=mode), st.data())
        def many(case, data):
            send(case, data)

        many()

    each = -(-CASES // len(found))
    try:
        for operation in found:
            before = sum(statuses.values())
            with contextlib.suppress(SkipTest, Unsatisfiable):  # nothing that would be wrong
                run(operation, negative, each // 2)
            run(operation, positive, each - (sum(statuses.values()) - before))
        # Uploads make up for routes that have few different cases.
        uploads = next(o for o in found if o.label == "PUT /v1/masks/{name}")
        if (left := CASES - sum(statuses.values())) > 0:
            run(uploads, positive, left)
        assert server.process.is_alive()
    finally:
        server.stop()
    total = sum(statuses.values())
    size = f"{total} cases, {len(found)} routes: " + ", ".join(
        f"{count} of {status}" for status, count in sorted(statuses.items())
    )
    print(*failures[:20], sep="\n")
    figures.record("cases", total, "cases", f">= {CASES}", size=size)
    figures.record("answers_5xx", len(failures), "answers", "== 0", size=size)
    _, problems, _ = asyncio.run(looked_at(valkey.url))
    figures.record("registry_problems", len(problems), "problems", "== 0", size=size)
    figures.end()
