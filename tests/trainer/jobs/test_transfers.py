"""Checkpoints and results of a job on their way to a server that is slow or refuses them."""

from __future__ import annotations

import json
import threading
import time

import pytest
from bmt_trainer.jobs.checkpoints import Checkpoints
from bmt_trainer.jobs.connection import Refused
from bmt_trainer.jobs.job import MASK, TrainingJob
from bmt_trainer.jobs.worker import Stopped, Worker, WorkerSettings

JOB = TrainingJob("ftjob-" + "0" * 24, "ab" * 32, "supervised", {}, 1, "ft-0", "0" * 32)


class Server:
    """Takes checkpoints after `wait_s`; said: its requests, in order."""

    def __init__(self, wait_s=0.0):
        self.wait_s, self.said = wait_s, []

    def report(self, job, metrics=(), *, steps=None):
        self.said.append("report")

    def checkpoint(self, job, step, mask, metrics):
        time.sleep(self.wait_s)
        self.said.append(f"checkpoint {step}")

    def results(self, job, data):
        raise Refused("the file is too large")

    def publish(self, job, mask, trained_tokens):
        self.said.append("publish")
        return job.model

    def end(self, job, outcome, reason):
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
    settings = WorkerSettings(base=JOB.base, folder=folder, poll_s=0.01, report_s=0.05)
    return Worker(server, settings, said)


@pytest.mark.found
def test_a_slow_checkpoint_keeps_its_lease(tmp_path):
    masks(tmp_path, 1)
    server = Server(wait_s=1.0)
    checkpoints = Checkpoints(server, JOB, tmp_path, print)
    assert a_worker(server, tmp_path)._watch(JOB, OneStep(server.said), checkpoints) == 0
    assert server.said.index("checkpoint 1") > 2


@pytest.mark.found
def test_a_signal_does_not_wait_for_a_checkpoint(tmp_path):
    masks(tmp_path, 1)
    server = Server(wait_s=30.0)
    worker = a_worker(server, tmp_path)
    threading.Timer(0.3, lambda: setattr(worker, "signum", 15)).start()
    before = time.monotonic()
    with pytest.raises(Stopped):
        worker._watch(JOB, OneStep(server.said), Checkpoints(server, JOB, tmp_path, print))
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
def test_refused_results_lose_the_job_nothing(tmp_path):
    folder = tmp_path / JOB.id
    folder.mkdir()
    (folder / MASK).write_bytes(b"x")
    history = {"steps": [{"step": 1, "loss": 1.0}]}
    (folder / f"{MASK}.history.json").write_text(json.dumps(history))
    server, said = Server(), []
    a_worker(server, tmp_path, said.append)._work(JOB)
    assert server.said == ["publish"]
    assert any("too large" in line for line in said)
