"""Faults of a job's file and of a worker's folder: the job ends, and the worker does not."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import time

import pytest
from bmt_trainer.jobs import transfers
from bmt_trainer.jobs.child import Child
from bmt_trainer.jobs.connection import Connection
from bmt_trainer.jobs.transfers import Times
from bmt_trainer.jobs.worker import Worker, WorkerSettings

from tests.support.requests.rows import jsonl, supervised

DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def a_worker(jobs, folder, monkeypatch):
    monkeypatch.setenv("BMT_API_KEY", jobs.worker_key)
    folder.mkdir(exist_ok=True)
    base = jobs.api.state.settings.fingerprint
    settings = WorkerSettings(base=base, folder=folder, times=Times(0.05), once=True)
    return Worker(Connection(jobs.url, "w", 60), settings, print)


async def work_once(worker):
    """As `run`, whose signals are the main thread's."""

    def work():
        worker.work(worker.next())

    await asyncio.to_thread(work)


@pytest.mark.parametrize("fault", ["damaged", "gone", "nested"])
async def test_a_file_that_cannot_be_read_fails_its_job(jobs, tmp_path, monkeypatch, fault):
    async with jobs.client() as client:
        file = await client.files.create(
            file=("f.jsonl", jsonl([supervised()])), purpose="fine-tune"
        )
        job = await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        (path,) = (tmp_path / "files").rglob("file-*")
        store = jobs.api.state.files
        if fault == "gone":
            path.unlink()
        elif fault == "damaged":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        else:  # by whoever writes both the registry and the files
            path.write_bytes(DEEP)
            record = await store.get("default", file.id)
            update = {"bytes": len(DEEP), "sha256": hashlib.sha256(DEEP).hexdigest()}
            await jobs.api.state.connection.quick.hset(
                "{bmt}:files:default", file.id, record.model_copy(update=update).model_dump_json()
            )
        monkeypatch.setattr(transfers, "_DOWNLOADS", 2)
        await work_once(a_worker(jobs, tmp_path / "work", monkeypatch))
        ended = await client.fine_tuning.jobs.retrieve(job.id)
    assert ended.status == "failed"
    assert "training file" in ended.error.message


async def test_a_folder_in_use_is_not_removed_however_old(jobs, tmp_path, monkeypatch):
    worker = a_worker(jobs, tmp_path / "work", monkeypatch)
    folders = [tmp_path / "work" / f"ftjob-{n}" for n in "12"]
    for folder in folders:
        folder.mkdir()
        (folder / "lock").touch()
        os.utime(folder, (time.time() - 30 * 86400,) * 2)
    with (folders[0] / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker.remove_old()
        assert [folder.exists() for folder in folders] == [True, False]


def test_an_error_names_no_folder_of_the_host(tmp_path):
    model, folder = tmp_path / "models" / "smol", tmp_path / "ftjob-1"
    folder.mkdir()
    settings = {"model": str(model), "dataset": "training.jsonl", "output": "mask.bmt"}
    (folder / "training.jsonl").write_bytes(jsonl([supervised()]))
    child = Child("supervised", folder, settings)
    child._process.wait(120)
    fault = child.fault()
    assert fault is not None
    assert "smol" in fault.message
    assert not fault.of_the_job(settings)
    assert str(tmp_path) not in fault.message
