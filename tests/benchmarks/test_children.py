"""Processes of the benchmarks: answers, failures with the log's end, CPU time."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.harness.contention import Contention, own_seconds
from benchmarks.processes import task
from benchmarks.processes.child import Child, ChildError
from benchmarks.processes.engine import Work
from benchmarks.processes.load import _measured
from benchmarks.processes.servers import lora_flags


def test_a_task_answers_from_a_process_of_its_own(tmp_path):
    job = {"layers": 1, "repeats": 1, "seed": 0}
    found = task.run("file", job, tmp_path)
    assert len(found["open"]) == 5
    assert len(found["naive"]) == 1
    assert 1.0 < found["size"] / found["entropy"] < 1.2
    assert found["size"] < found["packed"]


def test_a_task_that_fails_shows_its_log(tmp_path):
    with pytest.raises(ChildError, match="KeyError") as error:
        task.run("file", {"seed": 0}, tmp_path)
    assert "Traceback" in str(error.value)


def test_a_child_that_ends_is_an_error_at_once(tmp_path):
    child = Child("nothing", "benchmarks.no_such_module", [], tmp_path / "log")
    start = time.monotonic()
    with pytest.raises(ChildError, match="No module named"):
        child.answer(60)
    assert time.monotonic() - start < 30
    child.stop()


def test_time_of_descendants_is_own_time():
    # More than is asserted: the kernel counts in clock ticks and cuts each figure down to one.
    burn = "import time; end = time.process_time() + 0.7\nwhile time.process_time() < end: pass"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    before, watch = own_seconds(), Contention()
    subprocess.run([sys.executable, "-c", inner], check=True)
    assert own_seconds() - before >= 0.5
    # Whatever else runs here, what was just burnt is not counted as others'.
    assert watch.share() <= os.cpu_count()
    process = subprocess.Popen([sys.executable, "-c", burn + "\ninput()"], stdin=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while own_seconds(process.pid) < 0.5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert own_seconds(process.pid) >= 0.5
    process.communicate(b"\n")


def test_work_repeats_its_adapters_over_the_sequences():
    work = Work(sequences=4, prompt_tokens=2, new_tokens=3, adapters=(1, None))
    assert work.command(seed=7)["adapters"] == (1, None, 1, None)
    with pytest.raises(ValueError, match="3 adapters for 4 sequences"):
        Work(sequences=4, prompt_tokens=2, new_tokens=3, adapters=(1, 2, 3)).command(seed=0)


def test_what_is_taken_of_the_generators_answer():
    answer = {"output_throughput": 10.0, "duration": 2.0}
    found = _measured({**answer, "ttfts": [0.1, 0.5], "itls": [[0.2, 0.4], []]})
    assert found.longest_gap_ms == pytest.approx(400)
    assert found.ttft_p50_ms == pytest.approx(300)
    assert found.ttft_p99_ms == pytest.approx(496)


def test_lora_flags_give_a_slot_to_each_sequence_and_memory_to_all(tmp_path):
    flags = lora_flags([tmp_path / str(i) for i in range(40)], rank=8, slots=32)
    assert flags[flags.index("--max-loras") + 1] == "32"
    assert flags[flags.index("--max-cpu-loras") + 1] == "40"
    assert len(flags[flags.index("--lora-modules") + 1 :]) == 40
    fewer = lora_flags([tmp_path / str(i) for i in range(40)], rank=8, slots=8, held=20)
    assert fewer[fewer.index("--max-cpu-loras") + 1] == "20"
