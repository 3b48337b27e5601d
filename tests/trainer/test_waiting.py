"""Waits that a signal ends, whichever thread of the process receives it."""

from __future__ import annotations

import ast
import queue
import signal
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path

import bmt_trainer
import pytest
from bmt_trainer.methods.guards.interruption import Interrupted, Interruption
from bmt_trainer.waiting import next_of, result_of, threads


@pytest.mark.found
@pytest.mark.parametrize(
    ("wait", "never"),
    [(result_of, Future), (next_of, queue.SimpleQueue)],
    ids=["a future", "a queue"],
)
def test_a_signal_that_another_thread_receives_ends_a_wait(wait, never):
    """The system may choose any thread; sent to one by its id, it surely gets there."""
    ready, over = threading.Event(), threading.Event()

    def receive():
        ready.set()
        over.wait(30)

    other = threading.Thread(target=receive)
    other.start()
    ready.wait()
    strike = threading.Timer(0.3, lambda: signal.pthread_kill(other.ident, signal.SIGTERM))
    woken = threading.Event()

    def wake():
        """End a wait that the first signal did not: this one goes to the thread that sleeps."""
        woken.set()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    late = threading.Timer(20, wake)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with Interruption().handled():
            strike.start()
            late.start()
            with pytest.raises(Interrupted):
                wait(never())
        assert not woken.is_set()
    finally:
        over.set()
        late.cancel()
        signal.signal(signal.SIGALRM, before)
        other.join()


def test_results_and_errors_are_those_of_the_work():
    done, failed, slow, gone = Future(), Future(), Future(), Future()
    done.set_result(3)
    failed.set_exception(TimeoutError("of the work itself"))
    gone.cancel()
    threading.Timer(0.6, lambda: slow.set_exception(TimeoutError("late"))).start()
    assert result_of(done) == 3
    with pytest.raises(TimeoutError, match="of the work itself"):
        result_of(failed)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="late"):
        result_of(slow)
    assert time.monotonic() - started >= 0.5
    with pytest.raises(CancelledError):
        result_of(gone)


@pytest.mark.found
def test_work_that_runs_or_has_not_begun_does_not_hold_an_error_back():
    """As requests to a judge that hangs, when a signal ends the run."""
    begun, over = [], threading.Event()

    def work(at):
        begun.append(at)
        over.wait(20)

    started = time.monotonic()
    try:
        with suppress(RuntimeError), threads(2) as pool:
            futures = [pool.submit(work, at) for at in range(9)]
            raise RuntimeError
        assert time.monotonic() - started < 10
    finally:
        over.set()
    assert all(future.done() for future in futures[2:])
    assert set(begun) <= {0, 1}


def test_items_come_in_their_order():
    items = queue.SimpleQueue()
    items.put(1)
    threading.Timer(0.6, lambda: items.put(2)).start()
    assert [next_of(items), next_of(items)] == [1, 2]


def test_the_trainer_waits_for_other_threads_in_no_other_way():
    """A method of a lock, thread, queue or future, called without a limit."""
    package = Path(bmt_trainer.__file__).parent
    known = {
        # Not waits: a context variable's value, and the result of a task that has ended.
        *(("interruption.py", "_CURRENT.get()"), ("overruns.py", "_COUNT.get()")),
        ("generation.py", "task.result()"),
        # Of processes that were killed in the line before.
        *(("child.py", "self._process.wait()"), ("workers.py", "self._process.wait()")),
        ("programs.py", "process.wait()"),
        # Of headers, in a command that keeps nothing.
        ("headers.py", "ThreadPoolExecutor"),
    }
    found = set()
    for file in sorted(package.rglob("*.py")):
        if file.name == "waiting.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            # Its context, and the results of its `map`, are waits too.
            if isinstance(node, ast.Name) and node.id == "ThreadPoolExecutor":
                found.add((file.name, node.id))
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"result", "join", "get", "wait", "acquire"}
                and not node.args
                and not node.keywords
            ):
                found.add((file.name, ast.unparse(node)))
    assert found == known
