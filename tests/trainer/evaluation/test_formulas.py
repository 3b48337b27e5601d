"""The math grader within bounds of time and memory, in any thread."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import LibraryError
from bmt_trainer.evaluation import graders
from bmt_trainer.evaluation.formulas import workers
from bmt_trainer.evaluation.formulas.overruns import Overrun
from bmt_trainer.evaluation.formulas.workers import Workers
from bmt_trainer.evaluation.score import grade
from bmt_trainer.rewards import watch
from bmt_trainer.rewards.find import find
from bmt_trainer.rewards.trl_functions import trl_functions, trl_rows
from transformers import TrainerState

# Each takes math-verify more than 25 seconds, or all memory.
ENDLESS = [
    r"\prod_{k=1}^{100000} \frac{k+1}{k+2}",
    r"10^{10^{10}}",
    r"2^{3^{4^{5}}}",
    r"100000000!",
    r"\sum_{k=1}^{10^9} \frac{1}{k}",
]
BOUND = 0.5


@pytest.fixture
def short(monkeypatch):
    """The grader with a tenth of its time."""
    made = Workers(cpu_seconds=BOUND)
    monkeypatch.setattr(workers, "_WORKERS", made)
    workers._outcome.cache_clear()
    yield made
    workers._outcome.cache_clear()
    for worker in made._idle:
        worker.close()


def in_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return found[0]


@pytest.mark.found
@pytest.mark.parametrize("formula", ENDLESS)
def test_an_answer_without_end_is_wrong_and_counted(short, formula):
    texts = [rf"\boxed{{{formula}}}", r"\boxed{7}"]
    examples = [Example("1", "7")] * 2
    for call in (lambda run: run(), in_thread):
        workers._outcome.cache_clear()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        score = call(lambda: grade(texts, examples, graders.find("math")))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (score.exact, score.lenient, score.overrun) == (1, 1, 1)
        assert score.to_json()["overrun"] == 1
        assert "1 not finished by the math grader" in str(score)
        # Once for both readings, and of the ended process alone: with its start a second.
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert spent < BOUND + 4


@pytest.mark.found
def test_memory_is_bounded():
    pool = Workers(memory_bytes=120 << 20)
    assert pool.equal(r"\boxed{7}", "7")
    with pytest.raises(Overrun):
        pool.equal(r"\boxed{7}" + " " * (40 << 20), "7")
    assert pool.equal(r"\boxed{7}", "7")
    for worker in pool._idle:
        worker.close()


@pytest.mark.found
def test_a_bound_holds_where_the_run_ignores_and_blocks_its_signal():
    ignored = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    try:
        with pytest.raises(Overrun):
            Workers(cpu_seconds=BOUND).equal(rf"\boxed{{{ENDLESS[1]}}}", "7")
    finally:
        signal.signal(signal.SIGPROF, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < BOUND + 4


@pytest.mark.found
def test_a_process_that_ends_while_it_reads_has_overrun():
    pool = Workers()
    assert pool.equal(r"\boxed{7}", "7")
    [worker] = pool._idle
    os.kill(worker._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker._process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(Overrun):
        worker.compare("a" * (1 << 20), "7")
    worker.close()


@pytest.mark.found
def test_a_process_with_little_memory_left_compares_no_more():
    for memory_bytes, kept in ((1 << 30, 1), (110 << 20, 0)):
        pool = Workers(memory_bytes=memory_bytes)
        assert [pool.equal(rf"\boxed{{{n}}}", "7") for n in (6, 7)] == [False, True]
        assert len(pool._idle) == kept
        for worker in pool._idle:
            worker.close()


@pytest.mark.found
def test_a_reward_of_training_counts_and_warns(short):
    rewards = find("math")
    rows = [{"prompt": "1", "answer": "7", "columns": {}}]
    [function] = trl_functions(rewards, rows)
    metrics = {}
    values = function(
        prompts=["1"] * 2,
        completions=[rf"\boxed{{{ENDLESS[1]}}}", r"\boxed{7}"],
        completion_ids=[[1], [1]],
        trainer_state=TrainerState(),
        log_metric=metrics.__setitem__,
        row=[trl_rows(rows)[0]["row"]] * 2,
    )
    assert (values, metrics) == ([0.0, 1.0], {watch.OVERRUN: 1.0})
    step = {"step": 1, "completions/clipped_ratio": 0, "zeros": 1, "reward": 0.5}
    step |= {"frac_reward_zero_std": 0, **metrics}
    found = watch.found([step], watch.Limits(2, 8, regularized=False))
    assert "at least 1 not finished by the math grader in 5 s" in found["overrun"]
    # Three of two processes' mean, and one of another step.
    steps = [{**step, watch.OVERRUN: 1.5}, step]
    found = watch.found(steps, watch.Limits(2, 8, regularized=False))
    assert "at least 3 not finished" in found["overrun"]


def test_a_process_serves_many_and_is_replaced_when_it_is_gone():
    pool = Workers()
    assert pool.equal(r"\boxed{7}", "7")
    assert not pool.equal(r"\boxed{8}", "7")
    [worker] = pool._idle
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert pool.equal(r"\boxed{7}", "7")
    assert len(pool._idle) == 1
    # Surrogates and lines are data.
    assert not pool.equal("a\n\udc80\\boxed{8}\n", "7")
    pool._idle[0].close()


def test_threads_have_processes_of_their_own():
    pool = Workers()
    results = {}

    def ask(n):
        results[n] = [pool.equal(rf"\boxed{{{n}}}", str(m)) for m in range(8)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [m == n for m in range(8)] for n in range(4)}
    assert 1 <= len(pool._idle) <= 4
    for worker in pool._idle:
        worker.close()


def test_a_fork_does_not_read_its_parents_pipes():
    pool = Workers()
    assert pool.equal(r"\boxed{1}", "1")
    child = os.fork()
    if not child:
        right = pool.equal(r"\boxed{2}", "2") and not pool.equal(r"\boxed{3}", "2")
        pool._idle[0].close()
        os._exit(0 if right else 1)
    assert pool.equal(r"\boxed{4}", "4")
    assert os.waitpid(child, 0)[1] == 0
    pool._idle[0].close()


def test_no_process_stays_when_its_run_is_killed():
    code = (
        "from bmt_trainer.evaluation.graders import find; import os, signal\n"
        "from bmt_trainer.evaluation.formulas import workers\n"
        "find('math').strict(r'\\boxed{7}', '7')\n"
        "print(workers._WORKERS._idle[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    status, until = Path(f"/proc/{int(run.stdout)}/stat"), time.monotonic() + 20
    # Whoever takes orphans in may leave it as a zombie.
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_files_of_the_working_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "sympy.py").write_text("raise SystemExit('the folder was imported')")
    monkeypatch.chdir(tmp_path)
    pool = Workers()
    assert pool.equal(r"\boxed{7}", "7")
    # Ctrl-C of a terminal does not reach it, and its priority is that of this process.
    pid = pool._idle[0]._process.pid
    assert os.getpgid(pid) != os.getpgid(0)
    assert os.getsid(pid) == os.getsid(0)
    pool._idle[0].close()


def test_a_process_that_cannot_start_names_the_reason():
    with pytest.raises(LibraryError, match="pip install math-verify"):
        Workers(memory_bytes=30 << 20).equal("1", "1")


HOSTILE = [
    "(" * 16_000,
    "9" * 16_000,
    "1," * 8_000,
    "-" * 16_000,
    "#### " * 3_000,
    "the answer is " * 1_200,
    "**" * 8_000,
    "Action: f\nAction Input: {" * 600,
    'Action: f\nAction Input: {"a": ' + "[" * 16_000 + "]" * 16_000 + "}",
    '<tool_call>{"name": "f", "arguments": {' * 400,
    "<tool_call><function=f><parameter=a>" + "[" * 16_000 + "</parameter></function></tool_call>",
    "\\boxed{" * 2_000,
    "\\frac" * 3_000,
    "[" * 8_000 + "]" * 8_000,
    "A " * 8_000,
    "1e" * 8_000,
    '{"a":' * 2_500,
]


@pytest.mark.found
@pytest.mark.parametrize("name", graders.GRADERS)
def test_every_grader_ends_soon_on_any_text(name):
    grader, answers = graders.find(name), {"tools": "Action: f\nAction Input: {}"}
    for text in HOSTILE:
        began = time.thread_time()
        for call in (grader.strict, grader.lenient):
            assert call(text, answers.get(name, "7")) in (0, 1)
        # Of this thread, which is waiting while the math grader's process works.
        assert time.thread_time() - began < 2, text[:20]
