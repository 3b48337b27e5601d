"""A registry user with the documented rights alone: files, jobs, and masks outside of Redis."""

from __future__ import annotations

import bmt_core
import pytest

from tests.support.replica import make_mask, replica
from tests.support.requests.rows import form, jsonl, supervised
from tests.support.scenarios.nodes import RIGHTS, node
from tests.support.scenarios.registry import new_key


@pytest.mark.found
async def test_the_documented_rights_suffice_for_jobs_and_for_blobs(tmp_path):
    """Scripts of both read the registry's clock."""
    with node(tmp_path / "r") as one:
        keys = {"admin": await new_key(one.url)}
        one.add_user("few", RIGHTS)
        changes = {name: (tmp_path / name).as_uri() for name in ("files_url", "blobs_url")}
        url = one.url.replace("://", "://few:p@")
        async with replica(url, tmp_path / "cache", keys, **changes) as api:
            assert (await api.put("m", make_mask())).status_code == 201
            async with api.client() as client:
                rows = form(jsonl([supervised()]))
                file = (await client.post("/v1/files", **rows)).json()["id"]
                body = {"model": "tiny", "training_file": file}
                made = await client.post("/v1/fine_tuning/jobs", json=body)
                assert made.status_code == 200, made.text
                lease = {"base": "ab" * 32, "worker": "w"}
                job = (await client.post("/v1/workers/lease", json=lease)).json()
                ended = await client.put(
                    f"/v1/workers/jobs/{job['id']}/mask",
                    content=bmt_core.encode(make_mask(1)),
                    headers={
                        "x-bmt-lease": job["token"],
                        "content-type": "application/octet-stream",
                    },
                )
                assert ended.status_code == 200, ended.text
