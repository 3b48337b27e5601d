"""Changes to vLLM that are observable without an engine."""

from __future__ import annotations

import threading
import time

import pytest
from bmt_server.vllm_integration import patches


@pytest.fixture
def queue(monkeypatch):
    """Both ends of vLLM's message queue between engine and workers, in one process."""
    shm = pytest.importorskip("vllm.distributed.device_communicators.shm_broadcast")
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("the patch applies to the CPU only")
    monkeypatch.setattr(shm.SpinCondition, "__init__", shm.SpinCondition.__init__)
    patches._patch_spin()
    writer = shm.MessageQueue(1, 1)
    reader = shm.MessageQueue.create_from_handle(writer.export_handle(), 0)
    ready = threading.Thread(target=writer.wait_until_ready)
    ready.start()
    reader.wait_until_ready()
    ready.join()
    return writer, reader


def test_a_waiting_reader_uses_no_cpu(queue):
    writer, reader = queue
    threading.Timer(0.5, writer.enqueue, ["late"]).start()
    before, began = time.thread_time(), time.monotonic()
    assert reader.dequeue(timeout=10) == "late"
    assert time.monotonic() - began > 0.4
    assert time.thread_time() - before < 0.1
    for number in range(1000):
        writer.enqueue(number)
        assert reader.dequeue(timeout=10) == number


def test_the_contract_holds_in_a_process_that_is_patched_already(monkeypatch):
    """An engine within its caller's process, or a forked one, registers the plugin again."""
    vllm = pytest.importorskip("vllm.sampling_params")
    from bmt_server.vllm_integration.versions.check import check_version

    name = "_validate_structured_outputs"
    monkeypatch.setattr(vllm.SamplingParams, name, getattr(vllm.SamplingParams, name))
    for _ in range(2):
        patches._patch_structured_outputs()
        check_version()
