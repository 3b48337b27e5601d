"""Checkpoints and results of a job on their way to a server that is slow or refuses them."""

from __future__ import annotations

import json
import sys
import threading
import time

import pytest
from bmt_trainer.jobs.checkpoints import Checkpoints
from bmt_trainer.jobs.child import Child
from bmt_trainer.jobs.connection import NoRoom, Refused
from bmt_trainer.jobs.job import MASK, TrainingJob
from bmt_trainer.jobs.transfers import Stopped, Times
from bmt_trainer.jobs.worker import Worker, WorkerSettings

JOB = TrainingJob("ftjob-" + "0" * 24, "ab" * 32, "supervised", {}, 1, "ft-0", "0" * 32)


class Server:
    """Takes checkpoints after `wait_s`; said: its requests, in order."""

    refuses_metrics = False

    def __init__(self, wait_s=0.0):
        self.wait_s, self.said = wait_s, []

    def report(self, job, metrics=(), *, steps=None, said=""):
        if metrics and self.refuses_metrics:
            raise Refused("metrics.0.reward: extra inputs are not permitted")
        self.said.append(said or "report")

    def checkpoint(self, job, step, mask, metrics):
        time.sleep(self.wait_s)
        self.said.append(f"checkpoint {step}")

    def results(self, job, data):
        raise Refused("the file is too large")

    def publish(self, job, mask, trained_tokens):
        self.said.append("publish")
        return job.model

    def end(self, job, outcome, reason, code):
        self.said.append(outcome)


class OneStep:
    """A training of one step, which ends when it is looked at again."""

    steps = 1

    def __init__(self, said):
        self._said, self._new = said, [{"step": 1, "train_loss": 1.0}]

    def poll(self):
        return None if self._new else 0

    def new_steps(self):
        new, self._new = self._new, []
        return new

    def seen_steps(self):
        return [{"step": 1, "train_loss": 1.0}]

    def last_steps(self):
        return []

    def stop(self):
        self._said.append("stop")


def masks(folder, *steps):
    run = folder / f"{MASK}.run"
    run.mkdir()
    for step in steps:
        (run / f"step-{step}.bmt").write_bytes(b"x")


def a_worker(server, folder, said=print):
    settings = WorkerSettings(base=JOB.base, folder=folder, times=Times(0.01, 0.05, room_s=0.3))
    return Worker(server, settings, said)


@pytest.mark.found
def test_a_slow_checkpoint_keeps_its_lease(tmp_path):
    masks(tmp_path, 1)
    server = Server(wait_s=1.0)
    checkpoints = Checkpoints(server, JOB, tmp_path, print)
    assert a_worker(server, tmp_path).watch(JOB, OneStep(server.said), checkpoints) == 0
    assert server.said.index("checkpoint 1") > 2


@pytest.mark.found
def test_a_signal_does_not_wait_for_a_checkpoint(tmp_path):
    masks(tmp_path, 1)
    server = Server(wait_s=30.0)
    worker = a_worker(server, tmp_path)
    threading.Timer(0.3, lambda: setattr(worker, "signum", 15)).start()
    before = time.monotonic()
    with pytest.raises(Stopped):
        worker.watch(JOB, OneStep(server.said), Checkpoints(server, JOB, tmp_path, print))
    assert time.monotonic() - before < 15
    assert server.said[-2:] == ["stop", "released"]


@pytest.mark.found
def test_a_checkpoint_without_metrics_keeps_no_later_one_back(tmp_path):
    """The worker before this one reported the metrics of step 1, and did not publish its mask."""
    masks(tmp_path, 1, 2)
    server = Server()
    checkpoints = Checkpoints(server, JOB, tmp_path, print)
    checkpoints.publish([{"step": 2, "train_loss": 1.0}])
    checkpoints.publish([{"step": 3, "train_loss": 1.0}])
    assert server.said == ["checkpoint 2"]


@pytest.mark.found
def test_a_step_that_was_reported_before_a_kill_is_still_a_checkpoint(tmp_path, monkeypatch):
    """The worker before this one reported steps 1 and 2, and published the mask of neither."""
    masks(tmp_path, 2)
    lines = [json.dumps({"step": n, "loss": 1.0}) + "\n" for n in (1, 2, 3)]
    (tmp_path / f"{MASK}.run" / "steps.jsonl").write_text("".join(lines))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    child = Child(JOB.method, tmp_path, {}, step=2)
    assert [one["step"] for one in child.new_steps()] == [3]
    server = Server()
    Checkpoints(server, JOB, tmp_path, print).publish(child.seen_steps())
    assert server.said == ["checkpoint 2"]


@pytest.mark.found
def test_refused_results_lose_the_job_nothing(tmp_path):
    folder = tmp_path / JOB.id
    folder.mkdir()
    (folder / MASK).write_bytes(b"x")
    history = {"steps": [{"step": 1, "loss": 1.0}]}
    (folder / f"{MASK}.history.json").write_text(json.dumps(history))
    server, said = Server(), []
    a_worker(server, tmp_path, said.append).work(JOB)
    assert server.said == ["publish"]
    assert any("too large" in line for line in said)


@pytest.mark.found
def test_a_refused_report_keeps_the_lease_and_the_training(tmp_path):
    """As of figures that an older server does not know."""
    server, said = Server(), []
    server.refuses_metrics = True
    masks(tmp_path)
    checkpoints = Checkpoints(server, JOB, tmp_path, print)
    worker = a_worker(server, tmp_path, said.append)
    assert worker.watch(JOB, OneStep(server.said), checkpoints) == 0
    assert "report" in server.said
    assert any("extra inputs" in line for line in said)


class Full(Server):
    """A server whose registry is full, until `attempts` uploads were tried."""

    def __init__(self, attempts):
        super().__init__()
        self.attempts = attempts

    def results(self, job, data):
        raise NoRoom("the registry is full")

    def publish(self, job, mask, trained_tokens):
        self.attempts -= 1
        if self.attempts >= 0:
            raise NoRoom("the registry is full")
        return super().publish(job, mask, trained_tokens)

    def end(self, job, outcome, reason, code):
        self.said.append((outcome, code))


@pytest.mark.found
@pytest.mark.parametrize(("attempts", "last"), [(3, "publish"), (10**6, ("failed", "no_room"))])
def test_a_trained_mask_waits_for_room_and_not_forever(tmp_path, attempts, last):
    folder = tmp_path / JOB.id
    folder.mkdir()
    (folder / MASK).write_bytes(b"x")
    (folder / f"{MASK}.history.json").write_text('{"steps": [{"step": 1, "loss": 1.0}]}')
    server = Full(attempts)
    a_worker(server, tmp_path).work(JOB)
    assert server.said[0] == "The results file is not kept: the registry is full"
    assert server.said[1].startswith("The job is trained and waits for room")
    assert set(server.said[2:-1]) <= {"report"}
    assert server.said[-1] == last
    assert (folder / MASK).exists() == (last != "publish")


@pytest.mark.found
def test_an_unforeseen_error_gives_the_job_back_and_the_worker_goes_on(tmp_path, monkeypatch):
    server, said = Server(), []
    folder = tmp_path / JOB.id
    folder.mkdir()
    (folder / MASK).write_bytes(b"x")

    def publish(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(server, "publish", publish)
    a_worker(server, tmp_path, said.append).work(JOB)
    assert server.said == ["crashed"]
    assert any("ZeroDivisionError" in line for line in said)
