"""Servers that restart, hang, refuse and forget in the middle of a run: the mask is the same."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import signal
import threading
import time

import bmt_core
import pytest
from bmt_client import BmtClient
from bmt_server.registry.api_keys import ApiKeyStore
from bmt_server.registry.connection import RegistryConnection
from bmt_trainer.errors import RewardError, RolloutError
from bmt_trainer.methods.grpo import train
from bmt_trainer.methods.guards.interruption import Interrupted, Interruption
from bmt_trainer.methods.rollouts import of_run
from bmt_trainer.methods.rollouts.server import ServerRollouts

from tests.support.http.rollout_server import cut, refusal
from tests.support.training.display import Lines, quiet


@pytest.fixture(scope="session")
def digests():
    """The digest of the run that nothing happens to, once it has run: servers do not count."""
    return []


@pytest.fixture
def undisturbed(served, settings, tmp_path, digests):
    if not digests:
        mask = train(settings(server=served.url, output=tmp_path / "whole.bmt"), quiet())
        digests.append(mask.digest)
        served.asked.clear()
    return digests[0]


def at(number, action):
    """Faults of which only that of the request of this number (from 0) does something."""
    return [*[lambda asked: None] * number, action]


def ending(served, away_s=None):
    """A fault: the server ends with all requests unanswered; starts again after `away_s` seconds.

    Answers wait until it has ended, so that the run cannot go on with them.
    """

    def end():
        served.stop()
        served.held.clear()
        if away_s is not None:
            time.sleep(away_s)
            served.start()

    def fault(asked):
        served.held.set()
        threading.Thread(target=end).start()

    return fault


def left(served):
    """Names in the registry."""
    with BmtClient(served.url, served.key("admin")) as client:
        return [mask.name for mask in client.list()]


@pytest.mark.found
def test_a_server_may_restart_three_times(served, settings, undisturbed):
    restart, seen = ending(served, away_s=0.3), []

    def first_of_a_version(asked):
        """Restarts under the first request of three steps; a step waits once, however often."""
        if asked["model"] not in seen:
            seen.append(asked["model"])
            if len(seen) <= 3:
                restart(asked)

    served.faults = [first_of_a_version] * 1000
    lines = Lines()
    mask = train(settings(server=served.url), lines)
    assert mask.digest == undisturbed
    assert lines.text.count("waiting for it up to 2 minutes (--server-wait)") == 3
    assert lines.text.count("is back after") == 3
    assert left(served) == []


@pytest.mark.found
def test_a_mask_that_someone_deletes_is_pushed_again(served, settings, undisturbed, admin):
    def delete(asked):
        admin.delete(asked["model"].partition("@")[0])
        return refusal(404, "mask_not_found")(asked)

    served.faults = at(5, delete)
    lines = Lines()
    assert train(settings(server=served.url), lines).digest == undisturbed
    assert lines.text.count("is gone from the server; pushed again") == 1
    assert left(served) == []


def test_a_mask_deleted_between_steps_is_pushed_whole(served, settings, undisturbed, admin):
    push = BmtClient.push

    def deleted_before(self, name, *rest, **more):
        BmtClient.push = push
        admin.delete(name)
        return push(self, name, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BmtClient, "push", deleted_before)
        lines = Lines()
        assert train(settings(server=served.url), lines).digest == undisturbed
        BmtClient.push = push
    assert lines.text.count("pushed again whole") == 1
    assert left(served) == []


def test_a_mask_that_keeps_vanishing_ends_the_run(served, settings):
    served.faults = [refusal(404, "mask_not_found", "no mask")] * 100
    with pytest.raises(RolloutError, match="no mask"):
        train(settings(server=served.url), quiet())
    assert left(served) == []


def test_refusals_that_pass(served, settings, undisturbed):
    faults = [
        refusal(429, "too_many", **{"Retry-After": "0.1"}),
        refusal(503, "queue_full", **{"Retry-After": "0.1"}),
        refusal(503, "stopping"),
        refusal(500, "internal"),
        refusal(502, "bad_gateway"),
        cut,
    ]
    served.faults = [one for fault in faults for one in at(2, fault)]
    assert train(settings(server=served.url), quiet()).digest == undisturbed
    assert len(served.asked) == 16 + len(faults)
    assert left(served) == []


def test_the_wait_that_a_server_asks_for_is_kept(served, settings, undisturbed):
    times = []

    def busy(asked):
        times.append((asked["prompt"], time.monotonic()))
        return refusal(503, "queue_full", **{"Retry-After": "1"})(asked)

    def again(asked):
        times.append((asked["prompt"], time.monotonic()))

    served.faults = at(3, busy) + [again]
    lines = Lines()
    assert train(settings(server=served.url), lines).digest == undisturbed
    assert times[0][0] == times[1][0]
    assert times[1][1] - times[0][1] >= 1
    assert "waiting" not in lines.text


@pytest.mark.found
def test_a_hung_server_is_given_up_in_bounded_time(
    served, settings, undisturbed, impatient, monkeypatch
):
    config = settings(server=served.url, server_token_seconds=0.05, server_wait=0.05)
    served.faults = at(6, lambda asked: served.held.set())
    started, lines = time.monotonic(), Lines()
    with pytest.raises(RolloutError, match=r"too long twice.*--server-token-seconds") as caught:
        train(config, lines)
    assert time.monotonic() - started < 40
    assert "\n" not in str(caught.value)
    assert re.search(r"a checkpoint of step [12] is written", lines.text)
    served.held.clear()
    monkeypatch.setattr(of_run, "_BESIDES_S", 60.0)
    assert train(dataclasses.replace(config, resume=True), quiet()).digest == undisturbed
    assert left(served) == []


@pytest.mark.found
@pytest.mark.parametrize("minutes", [0, 0.01])
def test_a_server_that_stays_away_ends_the_run_with_a_checkpoint(
    served, settings, undisturbed, minutes
):
    config = settings(server=served.url, server_wait=minutes)
    served.faults = at(6, ending(served))
    started, lines = time.monotonic(), Lines()
    with pytest.raises(RolloutError, match=r"has not come back.*--server-wait.*--resume"):
        train(config, lines)
    assert time.monotonic() - started < 40
    assert re.search(r"a checkpoint of step [12] is written", lines.text)
    assert "until it expires" in lines.text
    served.start()
    [name] = left(served)
    resumed = train(dataclasses.replace(config, resume=True), quiet())
    assert resumed.digest == undisturbed
    assert {one["model"].partition("@")[0] for one in served.asked} == {name}
    assert left(served) == []


@pytest.mark.found
def test_a_key_that_is_revoked_is_named(served, settings, undisturbed, monkeypatch):
    secret = os.environ["BMT_API_KEY"]

    def revoke(asked):
        async def every_key():
            store = RegistryConnection(served.registry)
            keys = ApiKeyStore(store)
            for record in await keys.records():
                await keys.revoke(record.key_id)
            await store.close()

        asyncio.run(every_key())
        time.sleep(0.5)

    served.faults = at(5, revoke)
    config, lines = settings(server=served.url), Lines()
    with pytest.raises(RolloutError, match=r"refuses the key.*BMT_API_KEY") as caught:
        train(config, lines)
    assert secret not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search(r"a checkpoint of step [12] is written", lines.text)
    monkeypatch.setenv("BMT_API_KEY", served.key("infer", "upload"))
    assert train(dataclasses.replace(config, resume=True), quiet()).digest == undisturbed
    assert left(served) == []


@pytest.mark.found
def test_a_mask_that_outgrows_the_bound_goes_on_with_another(made, settings, monkeypatch):
    grown = {"alpha_start": 100.0, "alpha_end": 100.0, "live_set": "off", "learning_rate": 0.02}
    strict = made(max_sparsity=0.02)
    monkeypatch.setenv("BMT_API_KEY", strict.key("infer", "upload"))
    config, lines = settings(server=strict.url, **grown), Lines()
    with pytest.raises(RolloutError, match=r"at most 2.000%; serve with --max-sparsity") as caught:
        train(config, lines)
    assert "\n" not in str(caught.value)
    assert "--resume" in str(caught.value)
    assert "is written" in lines.text
    assert lines.text.count("beyond that the run ends with a checkpoint") <= 1
    assert left(strict) == []
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(RolloutError, match="--max-sparsity"):  # nothing has changed
        train(again, quiet())
    # On another server, and as that server would have ended it.
    wide = made(max_sparsity=0.9)
    lines = Lines()
    resumed = train(dataclasses.replace(again, server=wide.url), lines)
    assert f"server: {wide.url} from here on" in lines.text
    whole = train(settings(server=wide.url, output=config.output.with_name("w.bmt"), **grown))
    assert resumed.digest == whole.digest
    assert resumed.sparsity > 0.02
    assert left(wide) == []


@pytest.mark.found
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_requests_and_removes_the_mask(served, settings, sent):
    struck = []

    def strike(asked):
        served.held.set()
        struck.append(time.monotonic())
        os.kill(os.getpid(), sent)

    served.faults = at(6, strike)
    lines = Lines()
    with Interruption().handled(), pytest.raises(Interrupted):
        train(settings(server=served.url), lines)
    assert time.monotonic() - struck[0] < 40
    assert re.search(r"interrupted; a checkpoint of step 1 is written", lines.text)
    served.held.clear()
    assert left(served) == []


@pytest.mark.found
def test_a_killed_run_takes_its_mask_up_again(served, settings, undisturbed, monkeypatch):
    """Nothing is removed by a kill: the resumed run has the name, and removes all versions."""
    config = settings(server=served.url, checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(ServerRollouts, "close", lambda self, finished=True: None)
        served.faults = at(11, refusal(400, "killed"))
        with pytest.raises(RolloutError):
            train(config, quiet())
    [name] = left(served)
    kept = json.loads((config.output.with_name("m.bmt.run") / "run.json").read_text())
    assert kept["notes"]["rollout_name"] == name
    assert train(dataclasses.replace(config, resume=True), quiet()).digest == undisturbed
    assert {one["model"].partition("@")[0] for one in served.asked} == {name}
    assert left(served) == []


@pytest.mark.found
def test_the_true_error_is_seen_though_the_mask_cannot_be_removed(served, settings, tmp_path):
    file, mark = tmp_path / "broken.py", tmp_path / "away"
    file.write_text(
        "from pathlib import Path\n"
        "def odd(text, answer):\n"
        f"    if Path({str(mark)!r}).exists():\n"
        "        raise RuntimeError('the true error')\n"
        "    return float(len(text) % 2)\n"
    )

    ending = threading.Timer(0.2, served.stop)

    def end(asked):
        mark.touch()
        ending.start()

    served.faults = at(7, end)
    lines = Lines()
    with pytest.raises(RewardError, match="the true error"):
        train(settings(server=served.url, reward=f"{file}:odd"), lines)
    ending.join()
    served.start()
    assert (left(served) != []) == ("until it expires" in lines.text)


@pytest.mark.found
def test_versions_of_earlier_steps_are_removed_by_the_key_of_the_run(served, settings, admin):
    seen = []

    def versions(asked):
        name = asked["model"].partition("@")[0]
        seen.append(len(admin.versions(name)))
        assert admin.get(name).expires is not None

    served.faults = [versions] * 100
    train(settings(server=served.url, steps=6), quiet())
    assert max(seen) == 2


def test_a_server_that_forbids_removal_does_not_end_the_run(
    served, settings, undisturbed, monkeypatch
):
    """One of an earlier build asks for an administrator's key."""
    from bmt_client import PermissionDenied

    def denied(self, *_):
        raise PermissionDenied("DELETE needs the scope 'admin'", status=403)

    with monkeypatch.context() as patch:
        patch.setattr(BmtClient, "delete_version", denied)
        patch.setattr(BmtClient, "delete", denied)
        lines = Lines()
        assert train(settings(server=served.url), lines).digest == undisturbed
    assert lines.text.count("stay on the server") == 1
    assert lines.text.count("stays on server") == 1
    assert "until it expires" in lines.text


def test_a_run_that_ends_in_its_first_push_removes_its_mask(served, settings, monkeypatch):
    upload = BmtClient.upload

    def interrupted(self, *args, **options):
        upload(self, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(BmtClient, "upload", interrupted)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(settings(server=served.url), quiet())
    assert left(served) == []


def test_a_key_with_few_places_waits_for_them(made, settings, monkeypatch):
    narrow = made(key_concurrency=1)
    monkeypatch.setenv("BMT_API_KEY", narrow.key("infer", "upload"))
    lines = Lines()
    mask = train(settings(server=narrow.url), lines)
    assert bmt_core.load(settings().output).digest == mask.digest
    assert "waiting" not in lines.text
    assert len(narrow.asked) == 16
