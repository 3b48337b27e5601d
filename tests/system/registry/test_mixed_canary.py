"""Splits of aliases on a registry that a server of the version before them shares."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support.replica import make_mask
from tests.support.scenarios.revisions import ROOT, RevisionReplica, export

pytestmark = [pytest.mark.operate, pytest.mark.redis, pytest.mark.timeout(600)]

# The last one before splits.
REVISION = os.environ.get("BMT_REVISION_BEFORE_SPLITS", "a7d09eb")
PATH = "/v1/masks/m/aliases/prod"
MAIN, CANARY, SHADOW, OTHER = (make_mask(i) for i in range(4))


def within_5_s(condition):
    start = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - start < 5
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("before") / "tree"
    reason = export(REVISION, made)
    if reason:
        pytest.skip(reason)
    return made


def split(new, percent=100):
    body = {
        "digest": MAIN.digest,
        "canary": {"digest": CANARY.digest, "percent": percent},
        "shadow": {"digest": SHADOW.digest, "percent": 50},
    }
    return new.json("PUT", PATH, json=body)


def test_a_split_beside_a_server_that_knows_none(valkey, tmp_path, tree):
    model = {mask: f"m@{mask.digest[:12]}" for mask in (MAIN, CANARY, SHADOW, OTHER)}
    with (
        RevisionReplica(tree, valkey.url, tmp_path / "old") as old,
        RevisionReplica(ROOT, valkey.url, tmp_path / "new") as new,
    ):
        for mask in (MAIN, CANARY, SHADOW, OTHER):
            old.publish("m", mask)
        within_5_s(lambda: len(new.json("GET", "/v1/masks/m/versions")["data"]) == 4)
        split(new)
        assert new.served_model("m:prod") == model[CANARY]
        # The old server serves the main version, lists the same, and refuses what it does not know.
        within_5_s(lambda: old.request("GET", "/v1/masks/m:prod").is_success)
        assert {old.served_model("m:prod") for _ in range(20)} == {model[MAIN]}
        assert old.listing() == new.listing()
        body = {"digest": MAIN.digest, "canary": {"digest": CANARY.digest, "percent": 5}}
        assert old.request("PUT", PATH, json=body).status_code == 400
        assert old.request("POST", f"{PATH}/rollback").status_code == 404
        # Its prune keeps the versions of the split.
        old.json("POST", "/v1/masks/m/prune", params={"keep_last": 1})
        left = {v["digest"] for v in old.json("GET", "/v1/masks/m/versions")["data"]}
        assert left == {m.digest for m in (MAIN, CANARY, SHADOW, OTHER)}
        # It moves the alias away and back: the split has ended for good.
        old.json("PUT", PATH, json={"digest": OTHER.digest})
        within_5_s(lambda: new.served_model("m:prod") == model[OTHER])
        within_5_s(lambda: new.json("GET", "/v1/masks/m@" + CANARY.digest)["name"] == "m")
        time.sleep(0.5)
        old.json("PUT", PATH, json={"digest": MAIN.digest})
        within_5_s(lambda: new.served_model("m:prod") == model[MAIN])
        time.sleep(0.5)
        assert new.json("GET", PATH)["canary"] is None
        # It removes the canary's version: all requests get the main version.
        split(new)
        assert new.served_model("m:prod") == model[CANARY]
        old.json("DELETE", f"/v1/masks/m/versions/{CANARY.digest}")
        within_5_s(lambda: new.served_model("m:prod") == model[MAIN])
        within_5_s(lambda: new.json("GET", PATH)["canary"] is None)
    # And starts on what the new one wrote.
    with RevisionReplica(ROOT, valkey.url, tmp_path / "again") as again:
        again.publish("m", CANARY)
        split(again, 30)
        with RevisionReplica(tree, valkey.url, tmp_path / "late") as late:
            assert late.served_model("m:prod") == model[MAIN]
